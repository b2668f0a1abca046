"""Tests of concurrent commands on replicas, in any order of arrival."""

from itertools import permutations

import pytest

from mev.control.command_store import CommandStore
from mev.control.control_state import LevelConflicts
from mev.control.fleet import Fleet
from mev.wire.pb.control_pb2 import Command, Enrolment, Target
from tests.unit.control.orders import level_command

FIRST, SECOND = b"1" * 32, b"2" * 32


def again(ours: Command, rival: Command) -> Command | None:
    """Return what is ordered again where `rival` came between our order and its reading back."""
    conflicts = LevelConflicts()
    conflicts.begin(ours)
    assert conflicts.read(rival, is_new=True) is None
    return conflicts.read(ours, is_new=False)


@pytest.mark.parametrize("ours_is_newer", [True, False])
@pytest.mark.parametrize(
    ("ours", "rival", "is_ordered_again"),
    [("ACTIVE", "HALTED", "rival"), ("HALTED", "ACTIVE", "ours")],
)
def test_the_lowest_is_ordered_again_where_agents_hold_a_higher_one(
    ours: str, rival: str, is_ordered_again: str, *, ours_is_newer: bool
) -> None:
    own, other = (
        level_command(ours, counter=2 if ours_is_newer else 1),
        level_command(rival, counter=1 if ours_is_newer else 2),
    )
    held, lowest = (own if ours_is_newer else other), (own if is_ordered_again == "ours" else other)
    assert again(own, other) == (None if held == lowest else lowest)


def test_a_level_for_others_or_one_that_was_known_is_no_rival() -> None:
    own = level_command("ACTIVE", counter=2)
    assert again(own, level_command("HALTED", Target(modules=["m"]), counter=1)) is None
    conflicts = LevelConflicts()
    conflicts.begin(own)
    conflicts.read(level_command("HALTED", counter=1), is_new=False)
    assert conflicts.read(own, is_new=False) is None


def test_the_ledger_is_the_same_in_whatever_order_commands_come() -> None:
    commands = [
        level_command("ACTIVE", counter=1),
        level_command("REDUCING", counter=2),
        level_command("HALTED", counter=3, until_ns=100),
        level_command("NO_NEW", counter=4, until_ns=50),
    ]
    found = set()
    for one in permutations(commands):
        command_store = CommandStore()
        for command in one:
            command_store.add(command, b"", [])
        levels = tuple(command_store.ordered_level("all", now_ns) for now_ns in (10, 60, 110))
        found.add((levels, tuple(issued.command.id for issued in command_store.in_force(10))))
    assert len(found) == 1


def test_counters_of_two_replicas_never_collide_and_never_go_back() -> None:
    first, second = CommandStore(), CommandStore()
    clock = [5, 5, 4, 70_000, 70_000, 1, 200_000]
    ours = [first.next_counter(now_ns, 7) for now_ns in clock]
    theirs = [second.next_counter(now_ns, 8) for now_ns in clock]
    assert ours == sorted(set(ours))
    assert theirs == sorted(set(theirs))
    assert not set(ours) & set(theirs)
    assert all(counter >= now_ns for counter, now_ns in zip(ours, clock, strict=True))


def test_of_two_keys_the_first_has_the_name_until_it_is_let_go() -> None:
    fleet = Fleet()
    one = Enrolment(agent_id="a", module="m", public_key=FIRST, enrolled_at_ns=5)
    other = Enrolment(agent_id="a", module="m", public_key=SECOND, enrolled_at_ns=9)
    assert fleet.enrol(one)
    assert not fleet.enrol(other)
    assert not fleet.enrol(
        Enrolment(agent_id="a", module="m", public_key=SECOND, enrolled_at_ns=9, revoked=True)
    )
    assert fleet.agents["a"].enrolment == one
    assert fleet.enrol(
        Enrolment(agent_id="a", module="m", public_key=FIRST, enrolled_at_ns=5, revoked=True)
    )
    other.enrolled_at_ns = fleet.newest_ns + 1
    assert fleet.enrol(other)
