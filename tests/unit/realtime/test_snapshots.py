"""Tests of snapshots: the newest event of each key, then live events without a gap."""

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.auth.model import MASTER
from mev.bus.kafka import BrokerUnavailableError
from mev.realtime.access import StreamAccess
from mev.realtime.batch import Encoding
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.requests import RequestHandler
from mev.wire.frames import offsets_of
from mev.wire.pb.events_pb2 import Tick
from mev.wire.pb.stream_pb2 import Frame
from mev.wire.registry import EVENT_TYPES
from tests.services.waits import until_async
from tests.unit.realtime.links import TEXT, MemoryLink
from tests.unit.realtime.memory_log import MemoryLog, MemoryPool, key_of, place

TICK = EVENT_TYPES["tick"].topic
Newest = dict[tuple[int, str], int]
"""The newest offset of each key, by partition and key."""


class Watcher:
    """A client that keeps the newest event of each key, from the snapshot on."""

    def __init__(
        self, log: MemoryLog, encoding: Encoding, *, pool: MemoryPool | None = None, **limits: Any
    ) -> None:
        self.log = log
        self.encoding = encoding
        self.pool = pool or MemoryPool(log, chunk=3)
        bounds = HubLimits(**{"batch_window_ms": 1, "batch_max_size": 4, **limits})
        replay_pool: Any = self.pool
        self.hub = Hub(EVENT_TYPES, bounds, log="log", replay_pool=replay_pool)
        self.link = MemoryLink()
        client = self.hub.admit(self.link, encoding, "test")
        absent: Any = None
        access = StreamAccess(self.hub, absent)
        self.session = RequestHandler(self.hub, client, access, absent, MASTER)

    async def subscribe(self, **more: Any) -> None:
        message = {"op": "subscribe", "id": "s", "topics": ["tick"], "snapshot": True, **more}
        work = self.session.receive_text(orjson.dumps(message))
        if work is not None:
            await work

    def messages(self) -> list[dict[str, Any]]:
        """Return everything that was sent, frames in the form of JSON messages."""
        return [
            dict(message.json) if message.opcode == TEXT else _as_json(message.frame)
            for message in self.link.messages()
        ]

    def newest(self) -> Newest:
        """Return the newest offset of each key, of the snapshot and all that followed."""
        found: Newest = {}
        for message in self.messages():
            for event in message.get("events", ()):
                partition, offset = place(event["timestamp_ns"])
                key = partition, event["market_id"]
                assert found.get(key, -1) < offset
                found[key] = offset
        return found

    async def close(self) -> None:
        self.hub.close()
        await self.hub.settled()


def _as_json(frame: Frame) -> dict[str, Any]:
    ticks = [Tick.FromString(value) for part in frame.slices for value in part.events]
    events: list[dict[str, Any]] = [
        {"market_id": tick.market_id, "timestamp_ns": tick.timestamp_ns} for tick in ticks
    ]
    if frame.HasField("snapshot_left"):
        offsets = [offset for part in frame.slices for offset in offsets_of(part)]
        assert [place(event["timestamp_ns"])[1] for event in events] == offsets
        return {
            "op": "snapshot",
            "id": frame.subscription,
            "events": events,
            "left": frame.snapshot_left,
            "before": frame.sequence,
        }
    return {"op": "events", "id": frame.subscription, "events": events}


def expected(log: MemoryLog) -> Newest:
    return {
        (partition, key_of(offset)): offset
        for (topic, partition), end in log.ends.items()
        if topic == TICK
        for offset in range(end)
    }


@pytest.mark.parametrize("encoding", Encoding)
async def test_snapshot_has_newest_event_of_each_key_before_live_events(encoding: Encoding) -> None:
    log = MemoryLog()
    log.ends[TICK, 0] = log.ends[TICK, 1] = 20
    watcher = Watcher(log, encoding)
    log.deliver(watcher.hub)
    await watcher.subscribe()
    subscribed, *parts = watcher.messages()
    assert (subscribed["op"], subscribed["cursor"]) == ("subscribed", {"tick": {"0": 20, "1": 20}})
    assert [(part["op"], part["id"]) for part in parts] == [("snapshot", "s")] * len(parts)
    left = sum(len(part["events"]) for part in parts)
    for part in parts:
        left -= len(part["events"])
        assert part["left"] == left
    if encoding is Encoding.PROTOBUF:
        before = [
            sum(len(part["events"]) for part in parts[:number]) for number in range(len(parts))
        ]
        assert [part["before"] for part in parts] == before
    assert watcher.newest() == expected(log)
    log.ends[TICK, 0] = 25
    log.deliver(watcher.hub)
    await until_async(watcher.newest, lambda newest: newest == expected(log))
    assert watcher.messages()[-1]["op"] == "events"
    assert watcher.pool.open == 0
    await watcher.close()


async def test_snapshot_goes_by_filter_and_says_when_it_is_empty() -> None:
    log = MemoryLog()
    log.ends[TICK, 0] = 20
    watcher = Watcher(log, Encoding.JSON)
    log.deliver(watcher.hub)
    await watcher.subscribe(filter=['market_id == "y"'])
    (part,) = watcher.messages()[1:]
    assert {event["market_id"] for event in part["events"]} == {"y"}
    await watcher.subscribe(id="none", filter=['market_id == "unknown"'])
    assert watcher.messages()[-1] == {
        "op": "snapshot",
        "id": "none",
        "events": [],
        "published_ms": [],
        "left": 0,
    }
    await watcher.close()


async def test_snapshot_keeps_the_keys_written_last() -> None:
    log = MemoryLog()
    log.ends[TICK, 0] = 30
    watcher = Watcher(log, Encoding.JSON, snapshot_keys=1)
    log.deliver(watcher.hub)
    await watcher.subscribe()
    assert watcher.newest() == {(0, key_of(29)): 29}
    await watcher.close()


async def test_snapshot_reads_back_no_more_than_its_limit() -> None:
    log = MemoryLog()
    log.ends[TICK, 0] = 30
    watcher = Watcher(log, Encoding.JSON, snapshot_scan_events=2)  # one of each partition
    log.deliver(watcher.hub)
    await watcher.subscribe()
    assert watcher.newest() == {(0, key_of(29)): 29}
    await watcher.close()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"snapshot": 1}, "invalid_field"),
        ({"from": "earliest"}, "invalid_field"),
        ({"delivery": "datagram"}, "unsupported"),
    ],
)
async def test_snapshot_that_cannot_be_is_refused(fields: dict[str, Any], code: str) -> None:
    watcher = Watcher(MemoryLog(), Encoding.JSON)
    await watcher.subscribe(**fields)
    (message,) = watcher.messages()
    assert (message["op"], message["code"]) == ("error", code)
    await watcher.close()


async def test_snapshot_larger_than_the_queue_is_refused_and_leaves_nothing() -> None:
    log = MemoryLog()
    log.ends[TICK, 0] = 20
    watcher = Watcher(log, Encoding.JSON, queue_bytes=1, soft_buffer_bytes=1)
    log.deliver(watcher.hub)
    await watcher.subscribe()
    (message,) = watcher.messages()
    assert (message["code"], message["field"]) == ("snapshot_too_large", "snapshot")
    assert not watcher.hub._groups
    await watcher.close()


async def test_failed_reading_is_tried_again_by_the_next_snapshot() -> None:
    log = MemoryLog()
    log.ends[TICK, 0] = 20

    class FailingPool(MemoryPool):
        failures = 1

        def reader(self) -> Any:
            reader = super().reader()
            if self.failures:
                self.failures -= 1

                async def bounds(_topics: object) -> None:
                    raise BrokerUnavailableError("the brokers do not answer", retry_after_s=5)

                reader.bounds = bounds  # type: ignore[assignment,method-assign]
            return reader

    watcher = Watcher(log, Encoding.JSON, pool=FailingPool(log, chunk=3))
    log.deliver(watcher.hub)
    await watcher.subscribe()
    assert watcher.messages()[0]["code"] == "kafka_unavailable"
    await watcher.subscribe()
    assert watcher.newest() == expected(log)
    assert watcher.pool.open == 0
    await watcher.close()


@given(
    before=st.integers(0, 15),
    steps=st.lists(
        st.tuples(st.sampled_from([0, 1]), st.integers(1, 6), st.integers(0, 4)), max_size=8
    ),
    encoding=st.sampled_from(Encoding),
)
def test_snapshot_and_live_events_have_no_hole_whatever_comes_meanwhile(
    before: int, steps: list[tuple[int, int, int]], encoding: Encoding
) -> None:
    async def run() -> None:
        log = MemoryLog()
        log.ends[TICK, 0] = log.ends[TICK, 1] = before
        watcher = Watcher(log, encoding)
        log.deliver(watcher.hub, most=before // 2 + 1)
        subscribing = asyncio.create_task(watcher.subscribe())
        for partition, count, turns in steps:
            for _ in range(turns):
                await asyncio.sleep(0)
            log.ends[TICK, partition] += count
            log.deliver(watcher.hub, most=count)
        await subscribing
        log.deliver(watcher.hub)
        await until_async(lambda: watcher.newest() == expected(log))
        await watcher.close()

    asyncio.run(run())
