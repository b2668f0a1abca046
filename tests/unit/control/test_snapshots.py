"""SignedSnapshots of the active commands: shared, signed once, and built in slices."""

import asyncio
import time
from pathlib import Path

import pytest

from mev.control.control_state import ControlState
from mev.control.keys import Keys, open_keys, rotation
from mev.control.snapshots import SignedSnapshot, SignedSnapshots
from mev.crypto.keys import SigningKey
from mev.crypto.trust import COMMAND
from mev.wire.pb.control_pb2 import Command, SetConfig, Snapshot, Target, Version
from mev.wire.pb.envelope_pb2 import Envelope, Signature
from tests.unit.control.orders import level_command

SECOND_NS = 1_000_000_000


class Plant:
    """SignedSnapshots of a control state, with a clock and an offset that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys: Keys = open_keys(folder, seed_hex=None, key_id=None, now_ns=1)
        self.state = ControlState(self.keys, keep_sign_of_life_s=60)
        self.now = self.version = 0
        self.control_offset = 7
        self.snapshots = SignedSnapshots(
            self.state,
            next_version=self.next_version,
            control_offset=lambda: self.control_offset,
            clock=lambda: self.now,
        )

    def next_version(self) -> Version:
        """Return a new version."""
        self.version += 1
        return Version(epoch=self.keys.trust.epoch, counter=self.version)

    def set_up(self, *names: str) -> None:
        """Put a setting in force for each name."""
        for name in names:
            command = level_command("HALTED", Target(modules=["m"]))
            command.config.CopyFrom(SetConfig(config_key=name, config_value_json="1"))
            self.state.take(command, b"")

    def settings(self, shared: SignedSnapshot) -> list[str]:
        """Return the settings in a snapshot, with all signatures verified."""
        trust = self.keys.trust
        snapshot = trust.open(Envelope.FromString(shared.envelope), Snapshot, COMMAND, self.now)
        return [
            trust.open(each, Command, COMMAND, self.now).config.config_key
            for each in snapshot.commands
        ]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    return Plant(tmp_path)


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the payload types signed from now on; a signature takes a millisecond."""
    found: list[str] = []
    sign = SigningKey.sign

    def counted(key: SigningKey, kind: str, payload: bytes) -> Signature:
        found.append(kind)
        time.sleep(0.001)
        return sign(key, kind, payload)

    monkeypatch.setattr(SigningKey, "sign", counted)
    return found


async def test_snapshot_is_shared_by_requests_until_commands_change(
    plant: Plant, signed: list[str]
) -> None:
    plant.set_up("a", "b")
    first, *others = await asyncio.gather(*(plant.snapshots.current() for _ in range(9)))
    assert len(signed) == 3
    assert all(other is first for other in others)
    plant.set_up("c")
    assert plant.settings(await plant.snapshots.current()) == ["a", "b", "c"]
    assert len(signed) == 5


async def test_snapshot_is_made_again_after_a_second_without_signing_its_commands(
    plant: Plant, signed: list[str]
) -> None:
    plant.set_up("a", "b")
    first = await plant.snapshots.current()
    plant.now += SECOND_NS
    second = await plant.snapshots.current()
    assert second.envelope != first.envelope
    assert plant.settings(second) == ["a", "b"]
    assert len(signed) == 4


async def test_commands_are_signed_again_under_a_new_key(plant: Plant) -> None:
    plant.set_up("a", "b")
    await plant.snapshots.current()
    plant.keys.adopt(rotation(plant.folder, 200), 201)
    assert plant.settings(await plant.snapshots.current()) == ["a", "b"]


async def test_event_loop_goes_on_while_a_snapshot_is_signed(
    plant: Plant, signed: list[str]
) -> None:
    plant.set_up(*(f"s{number:02d}" for number in range(40)))
    building = asyncio.create_task(plant.snapshots.current())
    seen, most = 0, 0
    while not building.done():
        await asyncio.sleep(0)
        most, seen = max(most, len(signed) - seen), len(signed)
        plant.control_offset += 1
    assert len(signed) == 41
    assert most <= 6, f"{most} commands were signed in one go"
    assert building.result().control_offset <= 8, "an agent would miss what came meanwhile"
