"""Tests of floods of agent reports: they delay no request or command and use no memory."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mev.bus.kafka import Brokers, KafkaCluster, TopicSpec
from mev.bus.publisher import Publisher
from mev.control.control_state import MAX_REPORT_BYTES, ControlState
from mev.control.feed import Feed
from mev.control.keys import Keys, open_keys
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.wire.pb.control_pb2 import Enrolment, Report
from mev.wire.topics import CONTROL, REPORT
from tests.integration.brokers import TIMEOUT_S, opened

pytestmark = pytest.mark.slow

REPORTS = 1_200


@pytest.fixture(params=["embedded"])
def brokers(request: pytest.FixtureRequest) -> Iterator[Brokers]:
    with opened(request) as found:
        KafkaCluster(found, timeout_s=TIMEOUT_S).ensure_topics([REPORT])
        KafkaCluster(found, timeout_s=TIMEOUT_S).create_topics(
            [TopicSpec(name=CONTROL, partitions=1)]
        )
        yield found


class SlowControl:
    """Takes a millisecond for each message."""

    control_offset = 0

    def __init__(self) -> None:
        self.taken = 0

    def received(self, _raw: bytes, _late_at_ns: int = 0) -> None:
        time.sleep(0.001)  # as long as a signature takes to be checked, and longer
        self.taken += 1


async def test_event_loop_goes_on_between_reports(brokers: Brokers) -> None:
    with closing(
        Publisher(
            brokers, queue_messages=100_000, queue_kbytes=65_536, linger_ms=0, timeout_s=TIMEOUT_S
        )
    ) as publisher:
        await publisher.publish(REPORT, [{"key": b"a", "value": b"x"} for _ in range(REPORTS)])
    control: Any = SlowControl()
    feed = Feed(brokers, control, since_ms=0, timeout_s=TIMEOUT_S)
    try:
        await feed.start()
        await asyncio.to_thread(feed.start_reports)
        seen, most = 0, 0
        while control.taken < REPORTS:
            await asyncio.sleep(0)
            most, seen = max(most, control.taken - seen), control.taken
    finally:
        await asyncio.to_thread(feed.close)
    assert most <= 10, f"{most} reports were taken in one go"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return open_keys(tmp_path, seed_hex=None, key_id=None, now_ns=1)


def with_agent(keys: Keys) -> tuple[ControlState, SigningKey]:
    """Return a book that knows an agent, and the key of that agent."""
    control_state, agent = ControlState(keys, keep_sign_of_life_s=60), SigningKey.generate()
    enrolment = Enrolment(agent_id="a", module="m", public_key=agent.public_key, enrolled_at_ns=1)
    control_state.apply(seal(enrolment, keys.signing).SerializeToString(), 1)
    return control_state, agent


def test_large_report_is_refused_before_it_is_read(keys: Keys) -> None:
    control_state, agent = with_agent(keys)
    large = Report(agent_id="a", agent_counter=1, detail="x" * MAX_REPORT_BYTES)
    control_state.apply(seal(large, agent).SerializeToString(), 2)
    assert control_state.fleet.agents["a"].last_counter == 0
    control_state.apply(
        seal(Report(agent_id="a", agent_counter=2, detail="x" * 1000), agent).SerializeToString(), 3
    )
    assert control_state.fleet.agents["a"].last_counter == 2


def test_answers_to_commands_that_nobody_knows_take_bounded_memory(keys: Keys) -> None:
    """An agent answers what was never ordered, with as much text as a report may have."""
    control_state, agent = with_agent(keys)
    size = MAX_REPORT_BYTES - 1000
    for number in range(1, 301):
        report = Report(
            agent_id="a",
            agent_counter=number,
            command_id=f"c{number}",
            result="ACK",
            detail="x" * size,
        )
        control_state.apply(seal(report, agent).SerializeToString(), number)
    assert control_state.fleet.agents["a"].last_counter == 300
    assert control_state.early.size_bytes <= 32 << 20
