"""The Python client and `mev tail` against a running system."""

import asyncio
import contextlib
import json
import random
import shlex
import shutil
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from mev.client import Batch, Cursor, Stream, Subscription
from mev.client.errors import DisconnectedError, RefusedError, UnauthorizedError
from tests.services.system import MEV, RunningSystem

_BATCH = 500


def post(http: httpx.Client, market: str, numbers: range) -> None:
    """Publish ticks of a market, each with its number as the price."""
    for start in range(numbers.start, numbers.stop, _BATCH):
        ticks = [
            {"market_id": market, "timestamp_ns": 10**18 + n, "bid_price": n}
            for n in range(start, min(start + _BATCH, numbers.stop))
        ]
        http.post("/api/events/tick", json=ticks).raise_for_status()


def market() -> str:
    return f"test:{uuid.uuid4().hex}"


def of(name: str) -> list[str]:
    """Return the filter of a market."""
    return [f'market_id == "{name}"']


async def prices(subscription: Subscription, number: int) -> list[float]:
    """Return the prices of the next `number` events; nothing may be lost."""
    found: list[float] = []
    async with asyncio.timeout(30):
        while len(found) < number:
            batch = await anext(subscription)
            assert batch.lost == 0
            found += [event.bid_price for event in batch]
    return found


async def until(subscription: Subscription, condition: Callable[[Batch], bool]) -> Batch:
    async with asyncio.timeout(30):
        async for batch in subscription:
            if condition(batch):
                return batch
    raise AssertionError("the subscription ended")


async def test_a_filter_changes_while_events_flow(
    system: RunningSystem, http: httpx.Client
) -> None:
    first, second = market(), market()
    async with (
        Stream(system.url, api_key=system.key) as stream,
        stream.subscribe(["tick"], filter=of(first)) as subscription,
    ):
        await asyncio.to_thread(post, http, second, range(5))
        await asyncio.to_thread(post, http, first, range(5))
        assert await prices(subscription, 5) == [0, 1, 2, 3, 4]
        await subscription.update(filter=[*of(second), "bid_price >= 13"], on_slow="lossless")
        await asyncio.to_thread(post, http, second, range(10, 15))
        assert await prices(subscription, 2) == [13, 14]
        with pytest.raises(RefusedError, match="nonsense"):
            await subscription.update(filter=["nonsense == 1"])
        await asyncio.to_thread(post, http, second, range(20, 21))
        assert await prices(subscription, 1) == [20]


async def test_subscriptions_of_one_connection_get_each_their_own(
    system: RunningSystem, http: httpx.Client
) -> None:
    names = [market(), market()]
    async with Stream(system.url, api_key=system.key) as stream:
        both = [stream.subscribe(["tick"], filter=of(name)) for name in names]
        for subscription in both:
            await subscription.started()
        for place, name in enumerate(names):
            await asyncio.to_thread(post, http, name, range(place * 10, place * 10 + 3))
        assert [await prices(subscription, 3) for subscription in both] == [[0, 1, 2], [10, 11, 12]]
        assert await both[0].unsubscribe() == 0
        await asyncio.to_thread(post, http, names[1], range(5))
        assert await prices(both[1], 5) == [0, 1, 2, 3, 4]


async def test_a_cursor_goes_on_where_it_was(system: RunningSystem, http: httpx.Client) -> None:
    name = market()
    await asyncio.to_thread(post, http, name, range(1000))
    async with Stream(system.url, api_key=system.key) as stream:
        assert await prices(
            stream.subscribe(["tick"], filter=of(name), from_="earliest"), 1000
        ) == list(range(1000))
        subscription = stream.subscribe(
            ["tick"], filter=of(name), from_="earliest", max_rate=400, on_slow="lossless"
        )
        seen = [event.bid_price for event in await anext(subscription)]
        cursor = Cursor.parse(str(subscription.cursor))
    assert 0 < len(seen) < 1000
    async with Stream(system.url, api_key=system.key) as stream:
        rest = await prices(
            stream.subscribe(["tick"], filter=of(name), from_=cursor), 1000 - len(seen)
        )
    assert seen + rest == list(range(1000))


class Wire:
    """A way to the system that breaks off after a random number of bytes."""

    def __init__(self, system: RunningSystem, bytes_at_most: int) -> None:
        self._port = urlsplit(system.url).port
        self._bytes_at_most = bytes_at_most
        self._random = random.Random(7)
        self.breaks = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Wire"]:
        async with await asyncio.start_server(self._carry, "127.0.0.1", 0) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        upward = asyncio.create_task(self._pipe(reader, back, 1 << 60))
        await self._pipe(there, writer, self._random.randrange(1000, self._bytes_at_most))
        self.breaks += 1
        upward.cancel()
        for end in (writer, back):
            end.transport.abort()

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int
    ) -> None:
        with contextlib.suppress(OSError):
            while left > 0 and (data := await reader.read(min(4096, left))):
                writer.write(data)
                await writer.drain()
                left -= len(data)


@pytest.mark.parametrize("on_slow", ["lossless", "drop_oldest"])
async def test_no_event_is_missing_or_repeated_over_connections_that_break(
    system: RunningSystem, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, on_slow: str
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, _high: low)
    name, number = market(), 10_000
    async with Wire(system, 60_000).open() as wire, Stream(wire.url, api_key=system.key) as stream:
        subscription = stream.subscribe(
            ["tick"],
            filter=of(name),
            on_slow=on_slow,  # type: ignore[arg-type]
        )
        await subscription.started()
        posting = asyncio.create_task(asyncio.to_thread(post, http, name, range(number)))
        assert await prices(subscription, number) == list(range(number))
        await posting
        assert wire.breaks > 3


async def test_a_revoked_key_and_a_disconnected_client_stop(system: RunningSystem) -> None:
    async with httpx.AsyncClient(base_url=system.url, headers={"X-API-Key": system.key}) as http:
        made = (
            (await http.post("/api/auth/keys", json={"name": "client", "scopes": ["stream:read"]}))
            .raise_for_status()
            .json()
        )
        async with (
            Stream(system.url, api_key=made["key"]) as stream,
            stream.subscribe(["tick"]) as subscription,
        ):
            (await http.delete(f"/api/auth/keys/{made['id']}")).raise_for_status()
            with pytest.raises(UnauthorizedError, match="start again with one that is"):
                await until(subscription, lambda _batch: False)
        with pytest.raises(UnauthorizedError, match="check api_key"):
            async with Stream(system.url, api_key=made["key"]):
                pass
        async with (
            Stream(system.url, api_key=system.key) as stream,
            stream.subscribe(["tick"]) as subscription,
        ):
            (connection,) = (
                (await http.get("/api/realtime/connections")).raise_for_status().json()["items"]
            )
            (await http.delete(f"/api/realtime/connections/{connection['id']}")).raise_for_status()
            with pytest.raises(DisconnectedError):
                await until(subscription, lambda _batch: False)


@pytest.mark.slow
async def test_another_log_is_told_and_read_from_its_start(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    system = RunningSystem(tmp_path / "data", API_PORT=str(unused_tcp_port))
    try:
        await asyncio.to_thread(system.start)
        async with (
            Stream(system.url, api_key=system.key) as stream,
            stream.subscribe(["tick"], from_="earliest") as subscription,
        ):
            with system.client() as http:
                await asyncio.to_thread(post, http, "m", range(20))
            assert await prices(subscription, 20) == list(range(20))
            before = subscription.cursor
            assert await asyncio.to_thread(system.stop) == 0
            shutil.rmtree(system.data_dir / "kafka")
            await asyncio.to_thread(system.start)
            batch = await until(subscription, lambda batch: batch.reset)
            assert batch.cursor.log != before.log
            with system.client() as http:
                await asyncio.to_thread(post, http, "m", range(100, 103))
            assert await prices(subscription, 3) == [100, 101, 102]
    finally:
        await asyncio.to_thread(system.kill)


def test_tail_ends_on_an_interrupt_with_the_command_that_goes_on(
    system: RunningSystem, http: httpx.Client
) -> None:
    name = market()
    post(http, name, range(3))
    command = ["tail", "tick", "--filter", of(name)[0], "--json", "--from", "earliest"]
    with subprocess.Popen(
        [MEV, *command],
        env=system.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stdout is not None
        assert [json.loads(tail.stdout.readline())["bid_price"] for _ in range(3)] == [0, 1, 2]
        tail.send_signal(signal.SIGINT)
        out, told = tail.communicate(timeout=30)
    assert (tail.returncode, out) == (0, ""), told
    post(http, name, range(10, 13))
    *_, last = told.splitlines()
    again = shlex.split(last)
    assert again[:2] == ["mev", "tail"]
    shown = system.run(*again[1:], "--count", "3")
    assert [json.loads(text)["bid_price"] for text in shown.stdout.splitlines()] == [10, 11, 12]
    assert "3 events; to go on from here:" in shown.stderr


def test_tail_says_what_is_wrong(system: RunningSystem, tmp_path: Path) -> None:
    refused = system.run("tail", "tikc", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no event type 'tikc'" in refused.stderr
    nowhere = RunningSystem(tmp_path / "nothing").run("tail", check=False)
    assert nowhere.returncode == 1
    assert "start one with `mev up`" in nowhere.stderr
