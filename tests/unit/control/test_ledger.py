"""The ledger: answers, what is in force, what is ordered."""

from hypothesis import given
from hypothesis import strategies as st

from mev.control import ledger as ledger_module
from mev.control.ledger import Ledger, State
from mev.wire.pb.control_pb2 import ACTIVE, HALTED, NO_NEW, REDUCING, Command, Target, Version
from tests.unit.control.orders import answer, level_command


def states(ledger: Ledger, command: Command) -> dict[str, State]:
    issued = ledger.commands[command.id]
    return {agent_id: issued.state(delivery) for agent_id, delivery in issued.deliveries.items()}


def test_a_command_is_done_only_by_the_answer_of_each_agent() -> None:
    ledger, command = Ledger(), level_command("HALTED")
    issued = ledger.add(command, b"", ["a1", "a2", "a3"])
    assert set(states(ledger, command).values()) == {State.NOT_SENT}
    issued.published = True
    assert set(states(ledger, command).values()) == {State.STALE}
    ledger.answer(answer(command, "a1", "ACK"), 3_001_000)
    ledger.answer(answer(command, "a2", "NACK", reason_code="rejected_by_policy"), 2_000)
    assert states(ledger, command) == {"a1": State.SYNCED, "a2": State.ERROR, "a3": State.STALE}
    assert issued.deliveries["a1"].latency_ns == 3_000_000
    assert issued.deliveries["a2"].reason_code == "rejected_by_policy"


def test_obedience_after_a_refusal_counts_and_a_refusal_after_obedience_does_not() -> None:
    ledger, command = Ledger(), level_command("HALTED")
    ledger.add(command, b"", ["a1"])
    ledger.answer(answer(command, "a1", "NACK"), 1)
    ledger.answer(answer(command, "a1", "ACK"), 2)
    ledger.answer(answer(command, "a1", "NACK"), 3)
    assert states(ledger, command) == {"a1": State.SYNCED}


def test_a_sign_of_life_is_no_answer() -> None:
    ledger, command = Ledger(), level_command("HALTED")
    ledger.add(command, b"", ["a1"]).published = True
    ledger.answer(answer(command, "a1", "STATUS"), 1)
    assert states(ledger, command) == {"a1": State.STALE}


def test_a_repeat_changes_nothing() -> None:
    ledger, command = Ledger(), level_command("HALTED")
    first = ledger.add(command, b"", ["a1"])
    ledger.answer(answer(command, "a1", "ACK"), 1)
    assert ledger.add(command, b"", ["a1", "a2"]) is first
    assert states(ledger, command) == {"a1": State.SYNCED}


def test_without_an_order_nothing_is_allowed() -> None:
    ledger = Ledger()
    assert ledger.ordered_level("all", 0) == HALTED
    assert ledger.ordered_level("module:arbitrage", 0) == ACTIVE


def test_a_level_that_ends_returns_to_the_one_before() -> None:
    ledger = Ledger()
    lasting, passing = level_command("ACTIVE"), level_command("REDUCING", until_ns=500)
    ledger.add(lasting, b"", [])
    ledger.add(passing, b"", [])
    assert ledger.ordered_level("all", 499) == REDUCING
    assert ledger.ordered_level("all", 500) == ACTIVE
    assert [issued.command.id for issued in ledger.in_force(499)] == [lasting.id, passing.id]
    assert [issued.command.id for issued in ledger.in_force(500)] == [lasting.id]


def test_scopes_are_ordered_one_by_one() -> None:
    ledger = Ledger()
    ledger.add(level_command("ACTIVE"), b"", [])
    ledger.add(level_command("NO_NEW", Target(modules=["arbitrage"])), b"", [])
    assert ledger.ordered_level("all", 0) == ACTIVE
    assert ledger.ordered_level("module:arbitrage", 0) == NO_NEW
    assert ledger.ordered_level("agent:a1", 0) == ACTIVE


def test_an_older_command_that_arrives_late_is_not_in_force() -> None:
    ledger = Ledger()
    ledger.add(level_command("HALTED", counter=9), b"", [])
    ledger.add(level_command("ACTIVE", counter=8), b"", [])
    assert ledger.ordered_level("all", 0) == HALTED


@given(st.permutations(range(8)))
def test_the_order_of_arrival_does_not_matter(arrival: list[int]) -> None:
    commands = [level_command("ACTIVE" if number % 2 else "HALTED", counter=number + 1, epoch=1 + number // 4) for number in range(8)]
    ledger = Ledger()
    for number in arrival:
        ledger.add(commands[number], b"", [])
    latest = ledger.latest("level", "all")
    assert latest is not None
    assert latest.command == commands[7]


def test_old_commands_are_forgotten_but_never_what_is_in_force() -> None:
    ledger, halt = Ledger(), level_command("HALTED")
    ledger.add(halt, b"", [])
    for number in range(ledger_module.KEPT_COMMANDS + 10):
        command = Command(id=f"a{number}", version=Version(counter=1_000 + number), target=Target(all=True))
        command.action.module = "arbitrage"
        ledger.add(command, b"", [])
    assert len(ledger.commands) == ledger_module.KEPT_COMMANDS
    assert halt.id in ledger.commands
