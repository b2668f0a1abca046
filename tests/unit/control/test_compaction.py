"""Tests of journal compaction: the state after a restart is the same, and the size is bounded."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mev.control import command_store as ledger_module
from mev.control.compaction import compacted
from mev.control.control_state import ControlState
from mev.control.keys import Keys, open_keys
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.wire.pb.control_pb2 import Command, Enrolment, Proposal, Report, Target, Vote
from tests.unit.control.orders import level_command

NAMES = ("a1", "a2", "a3")
AGENT_KEYS = [SigningKey.generate() for _ in range(3)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enrol"), st.sampled_from(NAMES), st.integers(0, 2)),
        st.tuples(st.just("revoke"), st.sampled_from(NAMES)),
        st.tuples(st.just("level"), st.sampled_from(["HALTED", "ACTIVE"])),
        st.tuples(st.just("action")),
        st.tuples(
            st.just("answer"),
            st.sampled_from(NAMES),
            st.integers(0, 3),
            st.sampled_from(["ACK", "NACK", "STATUS"]),
        ),
        st.tuples(st.just("propose")),
        st.tuples(st.just("vote"), st.integers(0, 3), st.booleans()),
    ),
    max_size=40,
)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    """Give keys; only four commands are kept."""
    monkeypatch.setattr(ledger_module, "KEPT_COMMANDS", 4)
    return open_keys(tmp_path, seed_hex=None, key_id=None, now_ns=1)


class Plant:
    """A control plane without a disk: what its journal would hold, and its book."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.control_state = ControlState(keys, keep_sign_of_life_s=5e-9)
        self.journal: list[bytes] = []
        self._signers: dict[str, SigningKey] = {}
        self._now = 100

    def step(self, kind: str, *rest: Any) -> None:
        """Do something at the next moment."""
        self._now += 1
        getattr(self, f"_{kind}")(*rest)

    def expire(self) -> int:
        """Let all proposals expire."""
        self._now += 1_000
        self.control_state.proposals.forget_expired(self._now)
        return self._now

    def _enrol(self, name: str, key: int) -> None:
        known = self.control_state.fleet.agents.get(name)
        if known is None or known.enrolment.public_key == AGENT_KEYS[key].public_key:
            self._signers[name] = AGENT_KEYS[key]
            self._write(
                Enrolment(
                    agent_id=name,
                    module="m",
                    public_key=AGENT_KEYS[key].public_key,
                    enrolled_at_ns=self._now,
                )
            )

    def _revoke(self, name: str) -> None:
        if (known := self.control_state.fleet.agents.get(name)) is not None:
            gone = Enrolment.FromString(known.enrolment.SerializeToString())
            gone.revoked = True
            self._write(gone)

    def _level(self, level: str) -> None:
        self._write(level_command(level, counter=self._now))

    def _action(self) -> None:
        command = level_command("HALTED", counter=self._now)
        command.action.module = "m"
        self._write(command)

    def _answer(self, name: str, back: int, result: str) -> None:
        if name not in self.control_state.fleet.agents:
            return
        ids = (
            list(self.control_state.command_store.commands)[-1 - back :][:1]
            if result != "STATUS"
            else [""]
        )
        for command_id in ids:
            report = Report(
                agent_id=name,
                command_id=command_id,
                result=result,
                agent_counter=self._now,
                reported_at_ns=self._now,
            )
            self._keep(seal(report, self._signers[name]).SerializeToString())

    def _propose(self) -> None:
        draft = Command(target=Target(all=True))
        draft.issuer.principal = "ann"
        self._write(
            Proposal(
                id=f"p{self._now}",
                draft=draft,
                approvals_required=2,
                proposed_at_ns=self._now,
                expires_at_ns=self._now + 1_000,
            )
        )

    def _vote(self, back: int, approve: bool) -> None:
        for name in list(self.control_state.proposals.pending)[-1 - back :][:1]:
            self._write(Vote(proposal_id=name, principal="bob", approve=approve, at_ns=self._now))

    def _write(self, message: Command | Enrolment | Proposal | Vote) -> None:
        self._keep(seal(message, self._keys.signing).SerializeToString())

    def _keep(self, raw: bytes) -> None:
        if self.control_state.apply(raw, self._now):
            self.journal.append(raw)


def replayed(keys: Keys, journal: list[bytes], *, now_ns: int = 10**6) -> ControlState:
    """Return what a restart knows."""
    control_state, trusted = ControlState(keys, keep_sign_of_life_s=5e-9), keys.stored_trust()
    for raw in journal:
        control_state.replay(raw, now_ns, trusted)
    return control_state


def known(control_state: ControlState) -> dict[str, Any]:
    """Return all that is in a book."""
    return {
        "agents": {
            name: (str(a.enrolment), a.last_seen_ns, a.last_counter)
            for name, a in control_state.fleet.agents.items()
        },
        "revoked": {
            name: (gone.enrolled_at_ns, gone.public_key)
            for name, gone in control_state.fleet.revoked.items()
        },
        "commands": [
            (name, {d.agent_id: (d.result, d.arrived_at_ns) for d in issued.deliveries.values()})
            for name, issued in control_state.command_store.commands.items()
        ],
        "in force": [issued.command.id for issued in control_state.command_store.in_force(0)],
        "proposals": {
            name: (p.approvers, p.rejected_by, p.command_id)
            for name, p in control_state.proposals.pending.items()
        },
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_a_compacted_journal_makes_the_same_book(keys: Keys, steps: list[tuple[Any, ...]]) -> None:
    plant = Plant(keys)
    for step in steps:
        plant.step(*step)
    whole = known(replayed(keys, plant.journal))
    small = compacted(plant.journal, plant.control_state)
    assert known(replayed(keys, small)) == whole
    assert compacted(small, replayed(keys, small)) == small


def test_what_repeats_and_what_is_over_leaves_the_journal(keys: Keys) -> None:
    plant = Plant(keys)
    for _ in range(50):
        plant.step("enrol", "a1", 0)
        plant.step("action")
        plant.step("answer", "a1", 0, "NACK")
        plant.step("answer", "a1", 0, "ACK")
        plant.step("answer", "a1", 0, "STATUS")
        plant.step("enrol", "a2", 1)
        plant.step("revoke", "a2")
        plant.step("propose")
        plant.step("vote", 0, False)
    for _ in range(4):  # now no command that is kept was for the agents that have gone
        plant.step("action")
    assert len(plant.journal) > 300
    plant.expire()
    # Two enrolments, four commands, a heartbeat, a revocation, and the newest 50 proposals.
    assert len(compacted(plant.journal, plant.control_state)) == 2 + 4 + 1 + 1 + 2 * 50


def test_an_expired_proposal_is_not_taken_in_again(keys: Keys) -> None:
    plant = Plant(keys)
    for _ in range(60):
        plant.step("propose")
    now = plant.expire()
    assert len(plant.control_state.proposals.pending) == 50
    assert not any(plant.control_state.apply(raw, now) for raw in plant.journal)
    assert len(plant.control_state.proposals.pending) == 50


def test_a_copy_of_an_old_enrolment_brings_nobody_back(keys: Keys) -> None:
    plant = Plant(keys)
    plant.step("enrol", "a1", 0)
    plant.step("revoke", "a1")
    control_state = replayed(keys, compacted(plant.journal, plant.control_state))
    assert not control_state.apply(plant.journal[0], 200)
    assert not control_state.fleet.agents


def test_agent_whose_clock_is_ahead_is_not_seen_in_the_future_after_a_restart(keys: Keys) -> None:
    plant = Plant(keys)
    for step in (("enrol", "a", 0), ("level", "HALTED"), ("answer", "a", 0, "ACK")):
        plant.step(*step)
    assert replayed(keys, plant.journal, now_ns=50).fleet.agents["a"].last_seen_ns == 50
