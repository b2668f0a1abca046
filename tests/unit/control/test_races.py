"""What replicas make of orders that were given at once, whatever order they see them in."""

from itertools import permutations

import pytest

from mev.control.fleet import Fleet
from mev.control.ledger import Ledger
from mev.control.races import Races
from mev.wire.pb.control_pb2 import Command, Enrolment, Target
from tests.unit.control.orders import level_command

FIRST, SECOND = b"1" * 32, b"2" * 32


def again(ours: Command, rival: Command) -> Command | None:
    """Return what is ordered again where `rival` came between our order and its reading back."""
    races = Races()
    races.begin(ours)
    assert races.read(rival, is_new=True) is None
    return races.read(ours, is_new=False)


@pytest.mark.parametrize("ours_is_newer", [True, False])
@pytest.mark.parametrize(("ours", "rival", "is_ordered_again"), [("ACTIVE", "HALTED", "rival"), ("HALTED", "ACTIVE", "ours")])
def test_the_lowest_is_ordered_again_where_agents_hold_a_higher_one(
    ours: str, rival: str, is_ordered_again: str, *, ours_is_newer: bool
) -> None:
    own, other = level_command(ours, counter=2 if ours_is_newer else 1), level_command(rival, counter=1 if ours_is_newer else 2)
    held, lowest = (own if ours_is_newer else other), (own if is_ordered_again == "ours" else other)
    assert again(own, other) == (None if held == lowest else lowest)


def test_a_level_for_others_or_one_that_was_known_is_no_rival() -> None:
    own = level_command("ACTIVE", counter=2)
    assert again(own, level_command("HALTED", Target(modules=["m"]), counter=1)) is None
    races = Races()
    races.begin(own)
    races.read(level_command("HALTED", counter=1), is_new=False)
    assert races.read(own, is_new=False) is None


def test_the_ledger_is_the_same_in_whatever_order_commands_come() -> None:
    commands = [
        level_command("ACTIVE", counter=1),
        level_command("REDUCING", counter=2),
        level_command("HALTED", counter=3, until_ns=100),
        level_command("NO_NEW", counter=4, until_ns=50),
    ]
    found = set()
    for one in permutations(commands):
        ledger = Ledger()
        for command in one:
            ledger.add(command, b"", [])
        levels = tuple(ledger.ordered_level("all", now_ns) for now_ns in (10, 60, 110))
        found.add((levels, tuple(issued.command.id for issued in ledger.in_force(10))))
    assert len(found) == 1


def test_counters_of_two_replicas_never_collide_and_never_go_back() -> None:
    first, second = Ledger(), Ledger()
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
    assert not fleet.enrol(Enrolment(agent_id="a", module="m", public_key=SECOND, enrolled_at_ns=9, revoked=True))
    assert fleet.agents["a"].enrolment == one
    assert fleet.enrol(Enrolment(agent_id="a", module="m", public_key=FIRST, enrolled_at_ns=5, revoked=True))
    other.enrolled_at_ns = fleet.newest_ns + 1
    assert fleet.enrol(other)
