"""Tests of replay into the live stream, through broker, hub and socket, while events go on."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from mev import client
from mev.bus.kafka import KafkaCluster
from mev.bus.publisher import Publisher
from mev.client import Cursor, Resume, Slot, Stream, Subscription
from mev.client.cursor import Start
from mev.client.errors import RefusedError
from mev.realtime.boot import running_hub
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.wire.pb.events_pb2 import Bundle
from mev.wire.registry import EVENT_TYPES, KafkaRecord
from mev.wire.resume import encode
from tests.integration.realtime.service import HEADERS, KEY, RawClient, Service
from tests.services.embedded import TemporaryBroker
from tests.services.waits import until_async
from tests.unit.realtime.links import client_frame

TYPES = {name: EVENT_TYPES[name] for name in ("bundle", "tick")}
TOPIC = EVENT_TYPES["bundle"].topic
BEFORE, MEANWHILE, AFTER = 2000, 2000, 500
A_SLOT = 10
LARGE = 50_000
EARLIEST: dict[str, object] = {
    "op": "subscribe",
    "id": "s1",
    "topics": ["bundle"],
    "from": "earliest",
}


class Site:
    """A broker, a hub in a server, and a publisher of bundles that are numbered from 0."""

    def __init__(self, service: Service, publisher: Publisher) -> None:
        self.service = service
        self.published = 0
        self._publisher = publisher

    @property
    def hub(self) -> Hub:
        return self.service.hub

    @property
    def replays(self) -> int:
        """Return the number of subscriptions that are replaying."""
        assert self.hub.replay_pool is not None
        return self.hub.replay_pool.open

    def stream(self) -> Stream:
        return Stream(f"http://127.0.0.1:{self.service.port}", api_key=KEY)

    async def publish(self, number: int, size: int = 0) -> None:
        """Publish the next `number` events, some at a time."""
        end = self.published + number
        while self.published < end:
            numbers = range(self.published, min(end, self.published + 100))
            await self._publisher.publish(TOPIC, [record(n, size) for n in numbers])
            self.published = numbers.stop

    @contextlib.asynccontextmanager
    async def publishing(self, number: int) -> AsyncIterator[None]:
        """Publish meanwhile."""
        task = asyncio.create_task(self.publish(number))
        yield
        await task


def record(number: int, size: int) -> KafkaRecord:
    """Return an event whose key is one of many: they are in all partitions."""
    event = Bundle(
        bundle_id=f"{number}",
        slot=number // A_SLOT,
        profit_lamports=number,
        opportunity_id="x" * size,
    )
    return {"key": b"%d" % (number % 31), "value": event.SerializeToString()}


@pytest.fixture
async def site() -> AsyncIterator[Callable[..., Awaitable[Site]]]:
    async with AsyncExitStack() as stack:

        async def starter(replays: int = 4, **limits: float) -> Site:
            broker = stack.enter_context(
                closing(TemporaryBroker(timeout_s=10, partition_bytes=5 << 20))
            )
            KafkaCluster(broker.brokers, timeout_s=10).ensure_topics(
                type_.topic for type_ in TYPES.values()
            )
            publisher = Publisher(
                broker.brokers,
                queue_messages=100_000,
                queue_kbytes=100_000,
                linger_ms=1,
                timeout_s=10,
            )
            stack.callback(publisher.close)
            usual = {"batch_window_ms": 2, "tick_s": 0.01, "json_events_per_s": 1_000_000, **limits}
            bounds = HubLimits(**usual)  # type: ignore[arg-type]
            hub = await stack.enter_async_context(
                running_hub(
                    TYPES, broker.brokers, bounds, log="this", replays=replays, timeout_s=10
                )
            )
            service = Service(bounds, hub=hub)
            await service.started()
            stack.push_async_callback(service.stop)
            return Site(service, publisher)

        yield starter


async def read(subscription: Subscription, first: int, end: int) -> list[int]:
    """Return the numbers of all events until those of [first, end) arrived; fail on a loss."""
    found: list[int] = []
    while not set(range(first, end)) <= set(found):
        batch = await anext(subscription)
        assert batch.lost == 0
        found += [event.profit_lamports for event in batch]
    return found


async def ask(ws: ClientConnection, message: dict[str, object]) -> dict[str, Any]:
    await ws.send(json.dumps(message))
    answer: dict[str, Any] = json.loads(await ws.recv())
    return answer


async def until_later() -> datetime:
    """Return a time that is after what has been published and before what will be."""
    now = time.time()
    await until_async(lambda: time.time() > now + 0.005)
    later = datetime.now(UTC)
    await until_async(lambda: time.time() > now + 0.015)
    return later


async def never_reads(site: Site, start: object = "earliest") -> RawClient:
    """Connect a client that subscribes from the past and reads nothing of it."""
    client = await site.service.raw(Sec_WebSocket_Protocol="mev.v1.protobuf")
    client.send(client_frame(1, json.dumps({**EARLIEST, "from": start}).encode()))
    assert json.loads((await client.receive())[1])["op"] == "subscribed"
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    return client


@pytest.mark.parametrize("kind", ["earliest", "time", "slot", "cursor", "resume"])
async def test_from_the_past_into_what_goes_on(
    site: Callable[..., Awaitable[Site]], kind: str
) -> None:
    here = await site()
    await here.publish(BEFORE // 2)
    later = await until_later()
    first = BEFORE // 2
    start: Start
    async with here.stream() as stream:
        match kind:
            case "earliest":
                first, start = 0, "earliest"
            case "time":
                start = later
            case "slot":
                start = Slot(first // A_SLOT)
            case _:
                subscription = stream.subscribe(["bundle"], from_="earliest")
                await read(subscription, 0, first)
                start = (
                    Cursor.parse(str(subscription.cursor))
                    if kind == "cursor"
                    else Resume(subscription.resume)
                )
                await subscription.unsubscribe()
        await here.publish(BEFORE // 2)
        subscription = stream.subscribe(["bundle"], from_=start)
        async with here.publishing(MEANWHILE):
            found = await read(subscription, first, BEFORE + MEANWHILE)
        await here.publish(AFTER)
        found += await read(subscription, BEFORE + MEANWHILE, BEFORE + MEANWHILE + AFTER)
    assert sorted(found) == list(range(first, BEFORE + MEANWHILE + AFTER))
    for key in range(31):
        of_key = [number for number in found if number % 31 == key]
        assert of_key == sorted(of_key)
    await until_async(lambda: not here.hub.clients and not here.replays)


@pytest.mark.parametrize("kind", ["cursor", "resume"])
async def test_by_hand_from_the_earliest_and_on_from_its_cursor(
    site: Callable[..., Awaitable[Site]], kind: str
) -> None:
    here = await site()
    await here.publish(BEFORE)
    found: list[int] = []
    message = EARLIEST
    for part in range(4):
        async with (
            connect(here.service.url, additional_headers=HEADERS, max_size=None) as ws,
            here.publishing(100),
        ):
            subscribed = await ask(ws, message)
            assert (subscribed["start"], subscribed["log"]) == ("resumed", "this")
            assert set(subscribed["positions"]["bundle"]) == {"0", "1", "2", "3"}
            while len(found) < (part + 1) * 400 or (part == 3 and len(found) < here.published):
                events = json.loads(await ws.recv())
                assert events["dropped"] == 0
                found += [event["profit_lamports"] for event in events["events"]]
                message = {**EARLIEST, "from": {"cursor": events["cursor"], "log": "this"}}
                if kind == "resume":
                    message["from"] = {"resume": events["resume"]}
            if part == 2:
                await here.publish(10)
    assert sorted(found) == list(range(here.published))


async def test_events_past_and_live_say_when_they_were_published(
    site: Callable[..., Awaitable[Site]],
) -> None:
    here = await site()
    began_ms = int(time.time() * 1000)
    await here.publish(200)
    middle_ms = int((await until_later()).timestamp() * 1000)
    async with here.stream() as stream:
        subscription = stream.subscribe(["bundle"], from_="earliest")
        records: list[client.Record] = []
        while len(records) < 200:
            records += [*(await anext(subscription)).records()]
        await here.publish(200)
        while len(records) < 400:
            records += [*(await anext(subscription)).records()]
    ended_ms = int(time.time() * 1000)
    replay_pool, live = (
        [record.published_ms for record in records[:200]],
        [record.published_ms for record in records[200:]],
    )
    assert (
        began_ms
        <= min(replay_pool)
        <= max(replay_pool)
        <= middle_ms
        <= min(live)
        <= max(live)
        <= ended_ms
    )


async def test_what_is_gone_is_told_as_a_gap(site: Callable[..., Awaitable[Site]]) -> None:
    here = await site()
    await here.publish(800, LARGE)
    async with here.stream() as stream:
        cursor = Cursor({"bundle": dict.fromkeys(range(4), 0)}, "this")
        subscription = stream.subscribe(["bundle"], from_=cursor)
        told = await anext(subscription)
        assert (len(told), told.reset) == (0, False)
        gone = {gap.partition: len(gap) for gap in told.gaps}
        assert gone
        offsets: dict[int, list[int]] = {}
        while sum(map(len, offsets.values())) < here.published - sum(gone.values()):
            batch = await anext(subscription)
            assert batch.lost == 0
            for one in batch.records():
                offsets.setdefault(one.partition, []).append(one.offset)
    assert {partition: found[0] for partition, found in offsets.items() if found[0]} == gone
    for found in offsets.values():
        assert found == list(range(found[0], found[0] + len(found)))


@pytest.mark.parametrize(
    "cursor",
    [
        Cursor({"bundle": {0: 1}}, "another"),
        Cursor({"bundle": {0: 10**9}}, "this"),
        Cursor({"bundle": {77: 0}}, "this"),
        Resume(encode("another", {(TOPIC, 0): 1}, [TOPIC])),
    ],
)
async def test_a_cursor_of_another_log_begins_with_the_earliest(
    site: Callable[..., Awaitable[Site]], cursor: Start
) -> None:
    here = await site()
    await here.publish(200)
    async with here.stream() as stream:
        subscription = stream.subscribe(["bundle"], from_=cursor)
        told = await anext(subscription)
        assert (told.reset, len(told), told.cursor.log) == (True, 0, "this")
        assert sorted(await read(subscription, 0, 200)) == list(range(200))


async def test_closing_has_a_token_that_goes_on(site: Callable[..., Awaitable[Site]]) -> None:
    here = await site()
    await here.publish(200)
    async with connect(here.service.url, additional_headers=HEADERS, max_size=None) as ws:
        await ask(ws, EARLIEST)
        found: list[int] = []
        while len(found) < 200:
            found += [event["profit_lamports"] for event in json.loads(await ws.recv())["events"]]
        (client,) = here.hub.clients.values()
        here.hub.disconnect(client, 1001, "bye", resume="going_away")
        closing = json.loads(await ws.recv())
    await here.publish(100)
    async with here.stream() as stream:
        assert sorted(
            await read(
                stream.subscribe(["bundle"], from_=Resume(closing["resume"]["s1"])), 200, 300
            )
        ) == [*range(200, 300)]


async def test_a_cursor_that_names_no_log_is_refused_where_it_could_skip(
    site: Callable[..., Awaitable[Site]],
) -> None:
    here = await site()
    await here.publish(200)
    async with connect(here.service.url, additional_headers=HEADERS, max_size=None) as ws:
        refused = await ask(ws, {**EARLIEST, "from": {"cursor": {"bundle": {"0": 7}}}})
        assert (refused["op"], refused["code"], refused["field"]) == (
            "error",
            "log_required",
            "from",
        )
        begun = await ask(
            ws, {**EARLIEST, "from": {"cursor": {"bundle": {"0": 0}}}}
        )  # all there is: nothing can be skipped
        assert (begun["op"], begun["start"]) == ("subscribed", "resumed")
    async with here.stream() as stream:
        with pytest.raises(RefusedError) as caught:
            await stream.subscribe(["bundle"], from_=Resume("nonsense")).started()
        assert caught.value.reason == "bad_resume"


async def test_so_many_catch_up_at_once_and_who_leaves_gives_its_place_back(
    site: Callable[..., Awaitable[Site]],
) -> None:
    here = await site(replays=1, soft_buffer_bytes=10_000, replay_patience_s=600)
    await here.publish(300, LARGE)
    slow = await never_reads(here)
    assert here.replays == 1
    async with connect(here.service.url, additional_headers=HEADERS, max_size=None) as ws:
        refused = await ask(ws, EARLIEST)
        assert (refused["op"], refused["id"], refused["code"]) == (
            "error",
            "s1",
            "too_many_replays",
        )
        assert refused["retry_after_s"] > 0
        assert (await ask(ws, {**EARLIEST, "from": "live", "id": "live", "topics": ["tick"]}))[
            "op"
        ] == "subscribed"
        slow.writer.transport.abort()
        await until_async(lambda: here.replays == 0)
        assert (await ask(ws, EARLIEST))["op"] == "subscribed"
    await until_async(lambda: not here.hub.clients and not here.replays)
    assert (len(here.hub._groups), here.hub._budget.used_bytes) == (0, 0)


async def test_who_does_not_read_gives_its_place_to_who_does(
    site: Callable[..., Awaitable[Site]],
) -> None:
    here = await site(replays=1, soft_buffer_bytes=10_000, replay_patience_s=0.02)
    await here.publish(300, LARGE)
    slow = await never_reads(here)
    await until_async(lambda: here.replays == 0)
    async with here.stream() as stream:
        assert sorted(await read(stream.subscribe(["bundle"], from_="earliest"), 0, 300)) == list(
            range(300)
        )
    slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
    # Everything is there, late as it is.
    (client,) = here.hub.clients.values()
    await until_async(lambda: client.sent == 300 and not client.is_behind)
    assert client.dropped == 0
    await slow.close()


async def test_who_leaves_at_once_leaves_nothing(site: Callable[..., Awaitable[Site]]) -> None:
    here = await site(replays=1)
    await here.publish(1000)
    for _ in range(20):
        client = await here.service.raw()
        client.send(client_frame(1, json.dumps(EARLIEST).encode()))
        await client.writer.drain()
        client.writer.transport.abort()
        await until_async(lambda: not here.hub.clients and not here.replays)
    async with here.stream() as stream:
        assert sorted(await read(stream.subscribe(["bundle"], from_="earliest"), 0, 1000)) == list(
            range(1000)
        )
