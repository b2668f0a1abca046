"""Messages of the control journal are verified when it is read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.message import Message

from mev.control.journal import EnvelopeJournal
from mev.control.keys import rotation
from mev.core.ids import new_id
from mev.crypto.envelope import payload_type, seal
from mev.crypto.keys import SigningKey
from mev.crypto.trust import COMMAND
from mev.wire.pb.control_pb2 import (
    ACTIVE,
    HALTED,
    Command,
    Enrolment,
    Level,
    Proposal,
    Report,
    SetLevel,
    Snapshot,
    Target,
    Version,
    Vote,
)
from mev.wire.pb.envelope_pb2 import Envelope
from tests.unit.rollout.plant import Clock, Plant

FOREIGN = SigningKey.generate()
AGENT = "a1"


@asynccontextmanager
async def control_plane(folder: Path) -> AsyncIterator[Plant]:
    """Yield a control plane with one agent that is halted."""
    plant = Plant(folder, Clock())
    await plant.start()
    await plant.enrol(AGENT)
    await plant.control.lower(draft(HALTED))
    yield plant
    await plant.control.close()


def draft(level: Level) -> Command:
    command = Command(target=Target(all=True))
    command.level.CopyFrom(SetLevel(level=level, reason="test"))
    command.issuer.principal = "alice"
    return command


def forged(plant: Plant, epoch: int = 1) -> Command:
    """Return a command that is newer than all others and approved by two persons."""
    now = plant.clock()
    command = draft(ACTIVE)
    command.id = new_id()
    command.version.CopyFrom(Version(epoch=epoch, counter=now + 10**12))
    command.issued_at_ns, command.expires_at_ns = now, now + 10**12
    command.issuer.approvers.extend(["alice", "bob"])
    return command


def messages(plant: Plant) -> list[Message]:
    now = plant.clock()
    return [
        forged(plant),
        Enrolment(agent_id="b1", module="m", public_key=b"\x01" * 32, enrolled_at_ns=now),
        Proposal(id="p1", draft=draft(ACTIVE), proposed_at_ns=now, expires_at_ns=now + 10**12),
        Vote(proposal_id="p1", principal="bob", approve=True, at_ns=now),
        Report(agent_id=AGENT, agent_counter=10**6, reported_at_ns=now),
        Snapshot(version=Version(epoch=9, counter=now)),
    ]


async def restart_with(plant: Plant, *envelopes: bytes) -> None:
    """Add envelopes to the journal while the control plane is stopped."""
    await plant.control.close()
    journal = EnvelopeJournal(plant.folder / "control" / "journal")
    for envelope in envelopes:
        journal.append(envelope)
    journal.close()
    await plant.start()


async def levels(plant: Plant) -> list[Level]:
    """Return the levels that a new agent gets in its snapshot."""
    shared = await plant.control.snapshots.current()
    envelope = Envelope.FromString(shared.envelope)
    snapshot = plant.keys.trust.open(envelope, Snapshot, COMMAND, plant.clock())
    return [Command.FromString(one.payload).level.level for one in snapshot.commands]


@pytest.mark.parametrize("is_signed", [False, True], ids=["unsigned", "foreign key"])
async def test_messages_without_own_signature_are_left_out_and_audited(
    tmp_path: Path, *, is_signed: bool
) -> None:
    async with control_plane(tmp_path) as plant:
        path = tmp_path / "control" / "journal"
        envelopes = [
            seal(one, FOREIGN)
            if is_signed
            else Envelope(payload_type=payload_type(type(one)), payload=one.SerializeToString())
            for one in messages(plant)
        ]
        await restart_with(plant, *(one.SerializeToString() for one in envelopes))
        state = plant.control.state
        assert await levels(plant) == [HALTED]
        assert set(state.fleet.agents) == {AGENT}
        assert not state.proposals.pending
        assert state.fleet.agents[AGENT].last_counter < 10**6
        ((actor, details),) = plant.trail.of("control.journal_damaged")
        assert (actor, details["left_out"]) == ("system", len(envelopes))
        (copy,) = path.parent.glob("journal.damaged-*")
        assert copy.stat().st_size > path.stat().st_size
        await plant.restart()
        assert len(plant.trail.of("control.journal_damaged")) == 1, "the journal is sound again"


async def test_messages_of_replaced_keys_are_kept(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plant:
        old = set(plant.control.state.command_store.commands)
        for _ in range(2):
            await plant.control.adopt_key_set(
                rotation(tmp_path / "control", plant.clock()), "alice"
            )
        await plant.restart()
        assert not plant.trail.of("control.journal_damaged")
        assert old < set(plant.control.state.command_store.commands)
        assert set(plant.control.state.fleet.agents) == {AGENT}
        assert await levels(plant) == [HALTED]


async def test_replaced_key_does_not_supersede_commands_of_its_successor(tmp_path: Path) -> None:
    async with control_plane(tmp_path) as plant:
        old = plant.keys.signing
        await plant.control.adopt_key_set(rotation(tmp_path / "control", plant.clock()), "alice")
        await restart_with(
            plant,
            seal(forged(plant, epoch=1), old).SerializeToString(),
            seal(forged(plant, epoch=3), old).SerializeToString(),
        )
        assert await levels(plant) == [HALTED]
        ((_, details),) = plant.trail.of("control.journal_damaged")
        assert details["left_out"] == 1
