"""The ledger: answers, what is in force, what is ordered."""

from hypothesis import given
from hypothesis import strategies as st

from mev.control import command_store as ledger_module
from mev.control.command_store import CommandStore, DeliveryState
from mev.wire.pb.control_pb2 import (
    ACTIVE,
    HALTED,
    NO_NEW,
    REDUCING,
    Command,
    SetConfig,
    Target,
    Version,
)
from tests.unit.control.orders import answer, level_command


def states(command_store: CommandStore, command: Command) -> dict[str, DeliveryState]:
    issued = command_store.commands[command.id]
    return {agent_id: issued.state(delivery) for agent_id, delivery in issued.deliveries.items()}


def test_a_command_is_done_only_by_the_answer_of_each_agent() -> None:
    command_store, command = CommandStore(), level_command("HALTED")
    issued = command_store.add(command, b"", ["a1", "a2", "a3"])
    assert set(states(command_store, command).values()) == {DeliveryState.NOT_SENT}
    issued.published = True
    assert set(states(command_store, command).values()) == {DeliveryState.STALE}
    command_store.answer(answer(command, "a1", "ACK"), 3_001_000)
    command_store.answer(answer(command, "a2", "NACK", reason_code="rejected_by_policy"), 2_000)
    assert states(command_store, command) == {
        "a1": DeliveryState.SYNCED,
        "a2": DeliveryState.ERROR,
        "a3": DeliveryState.STALE,
    }
    assert issued.deliveries["a1"].latency_ns == 3_000_000
    assert issued.deliveries["a2"].reason_code == "rejected_by_policy"


def test_obedience_after_a_refusal_counts_and_a_refusal_after_obedience_does_not() -> None:
    command_store, command = CommandStore(), level_command("HALTED")
    command_store.add(command, b"", ["a1"])
    command_store.answer(answer(command, "a1", "NACK"), 1)
    command_store.answer(answer(command, "a1", "ACK"), 2)
    command_store.answer(answer(command, "a1", "NACK"), 3)
    assert states(command_store, command) == {"a1": DeliveryState.SYNCED}


def test_a_sign_of_life_is_no_answer() -> None:
    command_store, command = CommandStore(), level_command("HALTED")
    command_store.add(command, b"", ["a1"]).published = True
    command_store.answer(answer(command, "a1", "STATUS"), 1)
    assert states(command_store, command) == {"a1": DeliveryState.STALE}


def test_a_repeat_changes_nothing() -> None:
    command_store, command = CommandStore(), level_command("HALTED")
    first = command_store.add(command, b"", ["a1"])
    command_store.answer(answer(command, "a1", "ACK"), 1)
    assert command_store.add(command, b"", ["a1", "a2"]) is first
    assert states(command_store, command) == {"a1": DeliveryState.SYNCED}


def test_without_an_order_nothing_is_allowed() -> None:
    command_store = CommandStore()
    assert command_store.ordered_level("all", 0) == HALTED
    assert command_store.ordered_level("module:arbitrage", 0) == ACTIVE


def test_a_level_that_ends_returns_to_the_one_before() -> None:
    command_store = CommandStore()
    lasting, passing = level_command("ACTIVE"), level_command("REDUCING", until_ns=500)
    command_store.add(lasting, b"", [])
    command_store.add(passing, b"", [])
    assert command_store.ordered_level("all", 499) == REDUCING
    assert command_store.ordered_level("all", 500) == ACTIVE
    assert [issued.command.id for issued in command_store.in_force(499)] == [lasting.id, passing.id]
    assert [issued.command.id for issued in command_store.in_force(500)] == [lasting.id]


def test_scopes_are_ordered_one_by_one() -> None:
    command_store = CommandStore()
    command_store.add(level_command("ACTIVE"), b"", [])
    command_store.add(level_command("NO_NEW", Target(modules=["arbitrage"])), b"", [])
    assert command_store.ordered_level("all", 0) == ACTIVE
    assert command_store.ordered_level("module:arbitrage", 0) == NO_NEW
    assert command_store.ordered_level("agent:a1", 0) == ACTIVE


def test_an_older_command_that_arrives_late_is_not_in_force() -> None:
    command_store = CommandStore()
    command_store.add(level_command("HALTED", counter=9), b"", [])
    command_store.add(level_command("ACTIVE", counter=8), b"", [])
    assert command_store.ordered_level("all", 0) == HALTED


@given(st.permutations(range(8)))
def test_the_order_of_arrival_does_not_matter(arrival: list[int]) -> None:
    commands = [
        level_command(
            "ACTIVE" if number % 2 else "HALTED", counter=number + 1, epoch=1 + number // 4
        )
        for number in range(8)
    ]
    command_store = CommandStore()
    for number in arrival:
        command_store.add(commands[number], b"", [])
    latest = command_store.latest("level", "all")
    assert latest is not None
    assert latest.command == commands[7]


def test_old_commands_are_forgotten_but_never_what_is_in_force() -> None:
    command_store, halt = CommandStore(), level_command("HALTED")
    command_store.add(halt, b"", [])
    for number in range(ledger_module.KEPT_COMMANDS + 10):
        command = Command(
            id=f"a{number}", version=Version(counter=1_000 + number), target=Target(all=True)
        )
        command.action.module = "arbitrage"
        command_store.add(command, b"", [])
    assert len(command_store.commands) == ledger_module.KEPT_COMMANDS
    assert halt.id in command_store.commands


def setting(counter: int, target: Target) -> Command:
    version = Version(epoch=1, counter=counter)
    body = SetConfig(config_key="min_score", config_value_json=str(counter))
    return Command(id=f"s{counter}", version=version, target=target, issued_at_ns=1, config=body)


def test_refused_setting_is_in_force_together_with_the_one_before_it() -> None:
    command_store, module = CommandStore(lambda _: "m"), Target(modules=["m"])
    first, second = setting(1, module), setting(2, module)
    for command in (first, second):
        command_store.add(command, b"", ["a1", "a2"])

    def in_force() -> list[str]:
        return [issued.command.id for issued in command_store.in_force(0)]

    assert in_force() == ["s2"]
    command_store.answer(answer(second, "a1", "NACK", reason_code="expired"), 1)
    assert in_force() == ["s2"]
    command_store.answer(answer(second, "a1", "NACK", reason_code="bad_params"), 1)
    assert in_force() == ["s1", "s2"]
    assert command_store.superseded_by(command_store.commands["s1"]) == ""
    command_store.answer(answer(second, "a2", "NACK", reason_code="bad_params"), 1)
    assert in_force() == ["s1", "s2"]
    assert command_store.commands["s2"].is_refused
    command_store.answer(answer(second, "a2", "ACK"), 1)
    assert in_force() == ["s2"]
    assert command_store.superseded_by(command_store.commands["s1"]) == "s2"


def test_refusal_of_an_agent_that_enrolled_later_leaves_the_setting_in_force() -> None:
    command_store, module = CommandStore(lambda _: "m"), Target(modules=["m"])
    limit = setting(1, module)
    command_store.add(limit, b"", [])
    command_store.answer(answer(limit, "late", "NACK", reason_code="bad_params"), 1)
    assert [issued.command.id for issued in command_store.in_force(0)] == ["s1"]


def test_agent_that_enrolled_later_answers_active_commands_only() -> None:
    command_store, module = CommandStore(lambda _: "m"), Target(modules=["m"])
    old, new = setting(1, module), setting(2, module)
    action = Command(id="action", version=Version(counter=3), target=module, expires_at_ns=100)
    action.action.module = "m"
    for command in (old, new, action):
        command_store.add(command, b"", ["a1"])
    assert not command_store.answer(answer(old, "late", "NACK"), 1)
    assert command_store.answer(answer(old, "a1", "NACK"), 1)
    assert command_store.answer(answer(new, "late", "ACK"), 1)
    assert not command_store.answer(answer(action, "late", "ACK"), 100)
    assert command_store.answer(answer(action, "late", "ACK"), 99)


def test_setting_that_some_agents_refused_supersedes_no_narrower_one() -> None:
    command_store = CommandStore(lambda _: "m")
    narrow, wide = setting(1, Target(agent_ids=["a1"])), setting(2, Target(modules=["m"]))
    command_store.add(narrow, b"", ["a1"])
    command_store.add(wide, b"", ["a1", "a2"])
    assert [issued.command.id for issued in command_store.in_force(0)] == ["s2"]
    command_store.answer(answer(wide, "a2", "NACK", reason_code="bad_params"), 1)
    assert [issued.command.id for issued in command_store.in_force(0)] == ["s1", "s2"]


def test_command_that_arrives_after_a_newer_one_that_covers_it_is_not_in_force() -> None:
    for order in ((1, 2), (2, 1)):
        command_store = CommandStore(lambda agent_id: {"a1": "m"}.get(agent_id, "other"))
        commands = {
            1: setting(1, Target(agent_ids=["a1", "b1"])),
            2: setting(2, Target(modules=["m"])),
        }
        for number in order:
            command_store.add(commands[number], b"", [])
        alone, wide = command_store.commands["s1"], command_store.commands["s2"]
        assert command_store.scopes_in_force(alone) == ["agent:b1"]
        assert command_store.superseded_at(alone, "a1") == "s2"
        assert command_store.superseded_at(alone, "b1") == ""
        assert command_store.superseded_by(alone) == command_store.superseded_by(wide) == ""


def test_counts_are_those_of_the_states_of_each_agent() -> None:
    store = CommandStore(lambda _: "m")
    names = [f"a{number}" for number in range(9)]
    issued = store.add(level_command("NO_NEW"), b"", names)
    for number, name in enumerate(names[:6]):
        result = "ACK" if number % 3 else "NACK"
        store.answer(answer(issued.command, name, result), 2_000)
    among = {*names[4:], "unknown"}
    for published in (False, True):
        issued.published = published
        for chosen in (None, among):
            states = [
                issued.state(one)
                for name, one in issued.deliveries.items()
                if chosen is None or name in chosen
            ]
            assert issued.counts(chosen) == {state: states.count(state) for state in DeliveryState}
