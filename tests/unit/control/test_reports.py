"""Reports of agents: what one agent signs changes nothing for others."""

import asyncio
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import cast

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mev.control import risk, views
from mev.control.control_state import REFUSED, ControlState
from mev.control.journal import EnvelopeJournal, JournalWriter
from mev.control.keys import Keys, open_keys
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.wire.pb.control_pb2 import (
    ACK,
    NACK,
    TIGHTER_LOWER,
    Command,
    DeclaredLimit,
    Enrolment,
    Report,
    SetConfig,
    Target,
)
from tests.unit.control.orders import answer, level_command

AGENT_KEY = SigningKey.generate()
_counters = count(1)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return open_keys(tmp_path, seed_hex=None, key_id=None, now_ns=1)


def with_agents(keys: Keys, **modules: str) -> ControlState:
    """Return a control state with an agent for each name, in its module; all have one key.

    Each declares the setting `max_size`, initially 50; a lower one limits more.
    """
    max_size = DeclaredLimit(name="max_size", tighter=TIGHTER_LOWER, initial=50)
    control_state = ControlState(keys, keep_sign_of_life_s=60)
    for name, module in modules.items():
        enrolment = Enrolment(
            agent_id=name,
            module=module,
            public_key=AGENT_KEY.public_key,
            enrolled_at_ns=1,
            configs=[max_size],
        )
        assert control_state.apply(seal(enrolment, keys.signing).SerializeToString(), 1)
    return control_state


def sealed(report: Report) -> bytes:
    report.agent_counter, report.reported_at_ns = next(_counters), time.time_ns()
    return seal(report, AGENT_KEY).SerializeToString()


def enum_fields(descriptor: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every enum field below a message type."""
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_ENUM:
            yield (*path, field.name)
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            yield from enum_fields(field.message_type, (*path, field.name))


def with_unknown_value(path: tuple[str, ...]) -> Report:
    report = Report(agent_id="rogue")
    message = report
    for name in path[:-1]:
        inner = getattr(message, name)
        message = inner.add() if hasattr(inner, "add") else inner
    setattr(message, path[-1], 99)
    return report


@pytest.mark.parametrize(
    "path", list(enum_fields(cast("Descriptor", Report.DESCRIPTOR))), ids=".".join
)
def test_report_with_unknown_enum_value_is_refused(
    keys: Keys, path: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    control_state, before = with_agents(keys, rogue="m"), REFUSED._value.get()
    now = time.time_ns()
    assert not control_state.apply(sealed(with_unknown_value(path)), now)
    assert REFUSED._value.get() == before + 1
    assert f"agent 'rogue' has {'.'.join(path)} 99" in caplog.text
    agent = control_state.fleet.agents["rogue"]
    assert agent.last_counter == 0
    views.agent(agent, now, silent_after_s=10, conflicts=[])


def nack(command: Command, agent_id: str, reason_code: str, detail: str = "") -> bytes:
    report = answer(command, agent_id, NACK, reason_code=reason_code)
    report.detail = detail
    return sealed(report)


def test_repeated_refusals_of_one_agent_are_stored_once(keys: Keys) -> None:
    control_state, command = with_agents(keys, rogue="m"), level_command("HALTED")
    control_state.take(command, b"")
    now = time.time_ns()
    stored = [control_state.apply(nack(command, "rogue", f"r{n}"), now) for n in range(20)]
    assert stored == [True, *[False] * 19]
    delivery = control_state.command_store.commands[command.id].deliveries["rogue"]
    assert delivery.reason_code == "r19"
    assert control_state.apply(sealed(answer(command, "rogue", "ACK")), now)


def test_refusals_of_a_setting_are_stored_twice_at_most(keys: Keys) -> None:
    control_state, command = with_agents(keys, rogue="m"), level_command("HALTED")
    command.config.CopyFrom(SetConfig(config_key="k", config_value_json="1"))
    issued, now = control_state.take(command, b""), time.time_ns()
    reasons = ["expired", "bad_params"] * 10
    stored = [control_state.apply(nack(command, "rogue", reason), now) for reason in reasons]
    assert stored == [True, True, *[False] * 18]
    assert issued.is_refused


def test_text_of_a_report_is_cut_and_a_long_report_is_not_stored(keys: Keys) -> None:
    control_state, command = with_agents(keys, rogue="m"), level_command("HALTED")
    issued = control_state.take(command, b"")
    raw = nack(command, "rogue", "r" * 300, "d" * 100_000)
    assert not control_state.apply(raw, time.time_ns())
    delivery = issued.deliveries["rogue"]
    assert (delivery.reason_code, delivery.detail) == ("r" * 200, "d" * 200)


def test_refusal_of_more_than_4_kib_is_not_stored(keys: Keys) -> None:
    control_state, now = with_agents(keys, rogue="m"), time.time_ns()
    for size, is_stored in ((3_000, True), (5_000, False)):
        command = level_command("HALTED")
        control_state.take(command, b"")
        assert control_state.apply(nack(command, "rogue", "expired", "d" * size), now) == is_stored


async def test_command_is_stored_while_other_messages_keep_coming(tmp_path: Path) -> None:
    journal = EnvelopeJournal(tmp_path / "journal")
    writer = JournalWriter(journal, compact_bytes=1 << 30)
    kept: list[asyncio.Task[None]] = []

    async def flood() -> None:
        while True:
            kept.extend(asyncio.create_task(writer.keep(b"report")) for _ in range(3))
            await asyncio.sleep(0)

    flooding = asyncio.create_task(flood())
    try:
        await asyncio.sleep(0.1)
        await asyncio.wait_for(writer.append(b"command"), 2)
    finally:
        flooding.cancel()
    await asyncio.gather(*kept)
    stored = list(journal.read())
    assert (len(stored), stored.count(b"command")) == (len(kept) + 1, 1)
    assert (writer.waiting, writer.waiting_bytes) == (0, 0)
    writer.close()


def test_answer_of_an_agent_that_is_not_addressed_is_ignored(keys: Keys) -> None:
    control_state = with_agents(keys, addressed="arb", stranger="other")
    command = level_command("HALTED", Target(modules=["arb"]))
    early = level_command("HALTED", Target(agent_ids=["addressed"]))
    now = time.time_ns()
    assert not control_state.apply(sealed(answer(early, "stranger", NACK)), now)
    for issued in (control_state.take(command, b""), control_state.take(early, b"")):
        assert not control_state.apply(sealed(answer(issued.command, "stranger", ACK)), now)
        assert issued.deliveries.keys() == {"addressed"}
        assert control_state.apply(sealed(answer(issued.command, "addressed", ACK)), now)


def max_size(value: int, *agent_ids: str) -> Command:
    """Return a setting of the module, or of agents."""
    target = Target(agent_ids=agent_ids) if agent_ids else Target(modules=["arb"])
    command = level_command("HALTED", target)
    command.config.CopyFrom(SetConfig(config_key="max_size", config_value_json=str(value)))
    return command


def test_refusal_of_one_agent_leaves_the_setting_in_force_and_the_second_person(
    keys: Keys,
) -> None:
    control_state, now = with_agents(keys, rogue="arb", good="arb"), time.time_ns()
    loose, tight = max_size(500), max_size(10)
    for command in (loose, tight):
        control_state.take(command, b"")
    assert control_state.apply(nack(tight, "rogue", "bad_params"), now)
    in_force = control_state.command_store.in_force(now)
    assert [issued.command.id for issued in in_force] == [loose.id, tight.id]
    for draft in (max_size(400), max_size(400, "good"), max_size(400, "rogue")):
        assert risk.reasons(draft, control_state, now)
    assert not risk.reasons(max_size(9), control_state, now)


def test_setting_is_compared_with_what_each_agent_holds_after_its_refusal(keys: Keys) -> None:
    control_state, now = with_agents(keys, refusing="arb", good="arb"), time.time_ns()
    tight, loose = max_size(10), max_size(500)
    for command in (tight, loose):
        control_state.take(command, b"")
    assert control_state.apply(nack(loose, "refusing", "bad_params"), now)
    assert control_state.apply(sealed(answer(loose, "good", ACK)), now)
    assert risk.reasons(max_size(400), control_state, now) == ["max_size changes from 10 to 400"]
    assert not risk.reasons(max_size(9), control_state, now)


def test_agent_that_refused_every_setting_is_compared_with_its_initial_value(keys: Keys) -> None:
    control_state, now = with_agents(keys, refusing="arb"), time.time_ns()
    loose = max_size(500)
    control_state.take(loose, b"")
    assert control_state.apply(nack(loose, "refusing", "bad_params"), now)
    assert risk.reasons(max_size(400), control_state, now)
    assert not risk.reasons(max_size(40), control_state, now)
