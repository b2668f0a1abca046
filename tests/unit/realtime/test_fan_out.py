"""The hub, its groups and its clients over connections in memory."""

import asyncio
import dataclasses
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.bus.batch import PartitionBatch
from mev.realtime import routes
from mev.realtime.batch import EncodedFrame, Encoding
from mev.realtime.client import Client
from mev.realtime.errors import DuplicateIdError, TooManySubscriptionsError, UnknownIdError
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.link import CloseCode
from mev.realtime.options import OnSlow
from mev.realtime.websocket import protocol
from mev.wire.frames import offsets_of, published_ms_of
from mev.wire.pb.events_pb2 import Bundle
from mev.wire.registry import EVENT_TYPES
from mev.wire.resume import decode, fingerprint
from tests.unit.realtime.clock import Clock
from tests.unit.realtime.events import batch, options, tick, ticks
from tests.unit.realtime.links import TEXT, MemoryLink, Sent

TICK, BUNDLE, BOTH = options("tick"), options("bundle"), options("tick", "bundle")


def make_hub(**limits: float) -> Hub:
    return Hub(EVENT_TYPES, HubLimits(**{"batch_window_ms": 1, **limits}))  # type: ignore[arg-type]


def connect(hub: Hub, encoding: Encoding, *, reading: bool = True) -> tuple[Client, MemoryLink]:
    link = MemoryLink(reading=reading)
    client = hub.admit(link, encoding, "test")
    client.principal = "test"
    return client, link


def push(hub: Hub, first: int, number: int, *, topic: str = "tick", partition: int = 0) -> None:
    offsets = list(range(first, first + number))
    hub.push(batch(topic, partition, offsets, [tick(offset) for offset in offsets]))


def frame_events(messages: list[Sent]) -> list[tuple[str, int, int]]:
    return [
        (part.topic, part.partition, offset)
        for message in messages
        for part in message.frame.slices
        for offset in offsets_of(part)
    ]


async def test_event_after_a_quiet_window_is_sent_at_once_and_the_next_ones_wait(
    clock: Clock,
) -> None:
    hub = make_hub(batch_window_ms=5)
    client, link = connect(hub, Encoding.PROTOBUF)
    hub.subscribe(client, "a", TICK)
    push(hub, 0, 1)
    assert [frame_events([message]) for message in link.messages()] == [[("mev.tick.v1", 0, 0)]]
    push(hub, 1, 2)
    push(hub, 3, 1)
    assert len(link.messages()) == 1
    await clock.forward(0.006)
    _, message = link.messages()
    (part,) = message.frame.slices
    assert (part.topic, part.partition, part.first_offset, list(part.events)) == (
        "mev.tick.v1",
        0,
        1,
        [tick(i) for i in range(1, 4)],
    )
    assert message.frame.sent_at_ns > 0
    await clock.forward(0.004)
    push(hub, 4, 1)
    assert len(link.messages()) == 2
    await clock.forward(0.006)
    await clock.forward(0.006)
    push(hub, 5, 1)
    assert [offset for _, _, offset in frame_events(link.messages())] == list(range(6))
    hub.close()


async def test_full_frames_leave_at_once_and_the_rest_waits(clock: Clock) -> None:
    hub = make_hub(batch_max_size=4)
    client, link = connect(hub, Encoding.PROTOBUF)
    hub.subscribe(client, "a", TICK)
    push(hub, 0, 10)
    assert [len(frame_events([message])) for message in link.messages()] == [4, 4]
    push(hub, 10, 1, partition=1)
    await clock.forward(0.01)
    assert [len(frame_events([message])) for message in link.messages()] == [4, 4, 3]
    push(hub, 11, 2)
    push(hub, 13, 2)
    assert [len(frame_events([message])) for message in link.messages()] == [4, 4, 3, 4]
    assert not hub._window._deadlines
    hub.close()


async def test_a_frame_counts_events_over_all_its_slices(clock: Clock) -> None:
    hub = make_hub(batch_max_size=4)
    client, link = connect(hub, Encoding.PROTOBUF)
    hub.subscribe(client, "a", BOTH)
    push(hub, 0, 1)
    push(hub, 1, 3)
    push(hub, 7, 3, topic="bundle", partition=2)
    await clock.forward(0.01)
    _, first, second = link.messages()
    assert [(part.topic, len(part.events)) for part in first.frame.slices] == [
        ("mev.tick.v1", 3),
        ("mev.bundle.v1", 1),
    ]
    assert frame_events([second]) == [("mev.bundle.v1", 2, 8), ("mev.bundle.v1", 2, 9)]
    hub.close()


async def test_only_subscribed_topics_arrive(clock: Clock) -> None:
    hub = make_hub()
    client, link = connect(hub, Encoding.PROTOBUF)
    hub.subscribe(client, "a", BUNDLE)
    push(hub, 0, 3)
    hub.push(PartitionBatch("mev.unknown.v1", 0, [0], [b""], [b""]))
    await clock.forward(0.01)
    assert link.messages() == []
    hub.close()


async def test_clients_of_one_topic_set_share_the_encoded_bytes(clock: Clock) -> None:
    written: list[bytes] = []

    class Recorder(MemoryLink):
        def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
            del stale
            assert tail == b""
            written.append(protocol.binary_message(frame))

    hub = make_hub()
    for _ in range(3):
        hub.subscribe(hub.admit(Recorder(), Encoding.PROTOBUF, "test"), "a", TICK)
    push(hub, 0, 5)
    await clock.forward(0.01)
    assert len(written) == 3
    assert written[0] is written[1] is written[2]
    hub.close()


async def test_json_has_events_cursor_and_losses(clock: Clock) -> None:
    hub = make_hub()
    client, link = connect(hub, Encoding.JSON)
    hub.subscribe(client, 'a"b', BOTH)
    push(hub, 6, 1)
    push(hub, 7, 1)
    hub.push(
        batch("bundle", 3, [1, 2], [Bundle(bundle_id="x", landed=True).SerializeToString()] * 2)
    )
    await clock.forward(0.01)
    _, message = link.messages()
    events = message.json.pop("events")
    assert isinstance(events, list)
    assert [
        (event["type"], event.get("timestamp_ns"), event.get("landed")) for event in events
    ] == [
        ("tick", 7, None),
        ("bundle", None, True),
        ("bundle", None, True),
    ]
    rest = {name: value for name, value in message.json.items() if name != "events"}
    none = {"dropped": 0, "dropped_total": 0, "queued": 0, "lag_ms": 0}
    assert decode(str(rest.pop("resume")), EVENT_TYPES) == (
        fingerprint(""),
        {(EVENT_TYPES["tick"].topic, 0): 8, (EVENT_TYPES["bundle"].topic, 3): 3},
    )
    assert rest == {
        "op": "events",
        "id": 'a"b',
        "published_ms": [],
        "cursor": {"tick": {"0": 8}, "bundle": {"3": 3}},
        **none,
    }
    hub.close()


@pytest.mark.parametrize("encoding", Encoding)
async def test_events_have_the_time_of_their_publishing(encoding: Encoding, clock: Clock) -> None:
    hub = make_hub(soft_buffer_bytes=0)
    client, link = connect(hub, encoding)
    hub.subscribe(client, "a", options("tick", conditions=["timestamp_ns >= 5"]))
    hub.subscribe(client, "b", options("tick", on_slow=OnSlow.CONFLATE))
    times = [1000, 1001, 1001, 990, 1020]
    for partition in (0, 1):
        hub.push(dataclasses.replace(ticks([3, 4, 5, 6, 9], partition), published_ms=times))
        await clock.forward(0.01)
    client.drain()
    found = []
    for message in link.messages():
        if encoding is Encoding.JSON:
            body: dict[str, Any] = message.json
            found += [
                (event["timestamp_ns"], time)
                for event, time in zip(body["events"], body["published_ms"], strict=True)
            ]
        else:
            for part in message.frame.slices:
                found += zip(offsets_of(part), published_ms_of(part), strict=True)
    expected = [
        *zip([5, 6, 9], [1001, 990, 1020], strict=True),
        *zip([3, 4, 5, 6, 9], times, strict=True),
    ]
    assert sorted(found) == sorted(expected * 2)
    hub.close()


async def test_a_cursor_ends_where_its_batch_ends() -> None:
    hub = make_hub(batch_max_size=4)
    client, link = connect(hub, Encoding.JSON)
    hub.subscribe(client, "a", TICK)
    push(hub, 0, 6)
    (message,) = link.messages()
    assert message.json["cursor"] == {"tick": {"0": 4}}
    hub.close()


async def test_json_beyond_the_rate_is_counted_and_the_newest_kept(clock: Clock) -> None:
    hub = make_hub(json_events_per_s=5)
    client, link = connect(hub, Encoding.JSON)
    hub.subscribe(client, "a", TICK)
    push(hub, 0, 1)
    push(hub, 1, 3)
    push(hub, 3, 5, partition=1)
    await clock.forward(0.01)
    push(hub, 4, 4)
    await clock.forward(0.01)
    _, message = link.messages()
    events = message.json["events"]
    assert isinstance(events, list)
    assert [event["timestamp_ns"] for event in events] == [4, 5, 6, 7]
    assert (message.json["dropped"], message.json["cursor"]) == (4, {"tick": {"0": 4, "1": 8}})
    client.report()
    told = link.messages()[-1].json
    assert (told["events"], told["dropped"], told["cursor"]) == ([], 4, {"tick": {"0": 8, "1": 8}})
    hub.close()


async def test_a_late_client_loses_the_oldest_and_is_told_how_many() -> None:
    hub = make_hub(batch_max_size=2, soft_buffer_bytes=0, queue_bytes=100)
    slow, slow_link = connect(hub, Encoding.PROTOBUF, reading=False)
    fast, fast_link = connect(hub, Encoding.PROTOBUF)
    for client in (slow, fast):
        hub.subscribe(client, "a", TICK)
    push(hub, 0, 40)
    assert slow.queued_bytes() <= 100
    assert [offset for *_, offset in frame_events(fast_link.messages())] == list(range(40))
    slow_link.reading = True
    slow_link.read(1000)
    slow.drain()
    first, second, *rest = slow_link.messages()
    received = [offset for *_, offset in frame_events(slow_link.messages())]
    assert frame_events([first]) == [("mev.tick.v1", 0, 0), ("mev.tick.v1", 0, 1)]
    assert received[2:] == list(range(40 - len(received) + 2, 40))
    assert second.frame.dropped == 40 - len(received) > 0
    assert [message.frame.dropped for message in (first, *rest)] == [0] * (len(rest) + 1)
    hub.close()


async def test_one_frame_larger_than_the_queue_is_still_kept() -> None:
    hub = make_hub(batch_max_size=2, soft_buffer_bytes=0, queue_bytes=1)
    client, link = connect(hub, Encoding.PROTOBUF, reading=False)
    hub.subscribe(client, "a", TICK)
    push(hub, 0, 6)
    link.read(1000)
    client.drain()
    link.read(1000)
    assert [(len(frame_events([m])), m.frame.dropped) for m in link.messages()] == [(2, 0), (2, 2)]
    hub.close()


async def test_unsubscribing_ends_the_events_and_reports_what_was_lost() -> None:
    hub = make_hub(batch_max_size=1, soft_buffer_bytes=0)
    client, link = connect(hub, Encoding.PROTOBUF, reading=False)
    hub.subscribe(client, "a", TICK)
    hub.subscribe(client, "b", BOTH)
    push(hub, 0, 3)
    assert hub.unsubscribe(client, "a").lost == 2
    push(hub, 3, 1)
    link.reading = True
    link.read(1000)
    client.drain()
    assert [offset for *_, offset in frame_events(link.messages())] == [0, 0, 1, 2, 3]
    hub.close()


async def test_a_new_subscriber_gets_nothing_from_before(clock: Clock) -> None:
    hub = make_hub()
    first, first_link = connect(hub, Encoding.PROTOBUF)
    second, second_link = connect(hub, Encoding.PROTOBUF)
    hub.subscribe(first, "a", TICK)
    push(hub, 0, 2)
    hub.subscribe(second, "a", TICK)
    push(hub, 2, 2)
    await clock.forward(0.01)
    assert [offset for *_, offset in frame_events(first_link.messages())] == [0, 1, 2, 3]
    assert [offset for *_, offset in frame_events(second_link.messages())] == [2, 3]
    hub.close()


async def test_ids_are_unique_known_and_few() -> None:
    hub = make_hub(subscriptions=2)
    client, _ = connect(hub, Encoding.JSON)
    hub.subscribe(client, "a", TICK)
    with pytest.raises(DuplicateIdError):
        hub.subscribe(client, "a", BUNDLE)
    hub.subscribe(client, "b", TICK)
    with pytest.raises(TooManySubscriptionsError):
        hub.subscribe(client, "c", TICK)
    hub.unsubscribe(client, "a")
    with pytest.raises(UnknownIdError):
        hub.unsubscribe(client, "a")
    hub.subscribe(client, "a", BUNDLE)
    hub.close()


async def test_a_client_that_asks_and_never_reads_is_disconnected() -> None:
    hub = make_hub(soft_buffer_bytes=10, queue_bytes=10)
    client, link = connect(hub, Encoding.JSON, reading=False)
    aborted = []
    for _ in range(4):
        client.answer(b"01234567")
        aborted.append(link.aborted)
    assert aborted == [False, False, False, True]
    assert link.backlog() == 30
    hub.close()


async def test_nothing_remains_of_a_client_that_left(clock: Clock) -> None:
    hub = make_hub(connections=1, batch_max_size=1)
    client, link = connect(hub, Encoding.JSON)
    hub.subscribe(client, "a", TICK)
    assert hub.full
    hub.disconnect(client, CloseCode.NORMAL, "bye")
    push(hub, 0, 1)
    hub.disconnect(client, CloseCode.GOING_AWAY, "again")
    assert link.closed == (1000, "bye")
    assert hub.full
    hub.release(client)
    hub.release(client)
    assert (hub.full, hub.clients) == (False, {})
    assert not hub._groups
    assert not any(hub._groups.of_topic(type_.topic) for type_ in hub.types.values())
    push(hub, 0, 1)
    await clock.forward(0.01)
    assert link.messages() == []


async def test_connections_are_described() -> None:
    hub = make_hub(batch_max_size=2)
    client, _ = connect(hub, Encoding.PROTOBUF)
    hub.subscribe(client, "a", options("tick", "bundle", max_rate=5))
    push(hub, 0, 2)
    (info,) = routes.page(hub.clients, 0, 10, hub.positions)
    (subscription,) = info.subscriptions
    assert (info.transport, info.encoding, info.remote, info.principal) == (
        "websocket",
        "protobuf",
        "test",
        "test",
    )
    assert (info.sent, info.dropped, info.queued_bytes) == (2, 0, 0)
    assert (subscription.id, subscription.topics, subscription.max_rate, subscription.sent) == (
        "a",
        ["bundle", "tick"],
        5,
        2,
    )
    assert routes.page(hub.clients, info.id, 10, hub.positions) == []
    hub.close()


_actions = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 12), st.integers(0, 2)),
        st.tuples(st.just("read"), st.integers(1, 400), st.just(0)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


_limits = st.builds(
    HubLimits,
    batch_max_size=st.integers(1, 8),
    soft_buffer_bytes=st.integers(0, 300),
    queue_bytes=st.integers(0, 900),
    json_events_per_s=st.integers(1, 60),
)


@given(_actions, st.sampled_from(Encoding), _limits)
def test_received_and_dropped_make_what_was_pushed(
    actions: list[tuple[str, int, int]], encoding: Encoding, limits: HubLimits
) -> None:
    asyncio.run(_received_and_dropped(actions, encoding, limits))


async def _received_and_dropped(
    actions: list[tuple[str, int, int]], encoding: Encoding, limits: HubLimits
) -> None:
    hub = Hub(EVENT_TYPES, limits)
    client, link = connect(hub, encoding, reading=False)
    hub.subscribe(client, "a", TICK)
    (group,) = hub._groups
    offsets = [count() for _ in range(3)]
    pushed = 0
    for action, amount, partition in actions:
        if action == "push":
            numbers = [next(offsets[partition]) for _ in range(amount)]
            hub.push(ticks(numbers, partition, str(partition)))
            pushed += amount
        elif action == "read":
            link.read(amount)
            client.drain()
        else:
            group.flush()
    group.flush()
    link.reading = True
    link.read(len(link.waiting))
    client.drain()
    client.report()
    hub.close()
    received, dropped = _received(link.messages(), encoding)
    assert sum(map(len, received.values())) + dropped == pushed == client.sent + client.dropped
    assert all(numbers == sorted(set(numbers)) for numbers in received.values())


def _received(messages: list[Sent], encoding: Encoding) -> tuple[dict[int, list[int]], int]:
    """Return the numbers received by partition, and the sum of all reported losses."""
    received: dict[int, list[int]] = {}
    dropped = 0
    for message in messages:
        if message.opcode == TEXT and message.json["op"] == "closing":
            continue
        if encoding is Encoding.PROTOBUF:
            read = [(partition, offset) for _, partition, offset in frame_events([message])]
            lost: object = message.frame.dropped
        else:
            events, lost = message.json["events"], message.json["dropped"]
            assert isinstance(events, list)
            read = [(int(event["market_id"]), event["timestamp_ns"]) for event in events]
        assert isinstance(lost, int)
        dropped += lost
        for partition, number in read:
            received.setdefault(partition, []).append(number)
    return received, dropped
