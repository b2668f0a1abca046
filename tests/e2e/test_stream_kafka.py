"""Tests of a lossless subscription while Kafka and the system die and recover under load."""

import asyncio
import contextlib
import itertools
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from mev.client import Stream, Subscription
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import DEAD_LETTER, SINK_GROUP
from tests.integration.brokers import real, renew
from tests.services.kafka import RealKafka
from tests.services.system import RunningSystem

pytestmark = pytest.mark.slow
A_BATCH = 50
MARKETS = 16
PATIENCE_S = 120


@pytest.fixture
def system(real_kafka: RealKafka, tmp_path: Path) -> Iterator[RunningSystem]:
    renew(real(real_kafka), SINK_GROUP, [*BY_TOPIC, DEAD_LETTER])
    system = RunningSystem(
        tmp_path / "data", KAFKA_BROKERS=real_kafka.brokers, PUBLISH_TIMEOUT_S="20"
    )
    system.start()
    yield system
    system.stop()


class Publisher:
    """Posts ticks until each is acknowledged; a batch that is not is posted again as new events."""

    def __init__(self, system: RunningSystem) -> None:
        self.acknowledged: set[int] = set()
        self.run = uuid.uuid4().hex
        self._system = system
        self._numbers = itertools.count(1)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish meanwhile."""
        stopping = asyncio.Event()
        task = asyncio.create_task(self._work(stopping))
        try:
            yield
        finally:
            stopping.set()
            await task

    async def _work(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            # A system that has been restarted is somewhere else.
            with contextlib.suppress(httpx.HTTPError, OSError, ValueError):
                headers = {"X-API-Key": self._system.key}
                async with httpx.AsyncClient(
                    base_url=self._system.url, headers=headers, timeout=30
                ) as http:
                    while not stopping.is_set():
                        await self._post(http)
            await asyncio.sleep(0.05)

    async def _post(self, http: httpx.AsyncClient) -> None:
        numbers = list(itertools.islice(self._numbers, A_BATCH))
        events = [
            {
                "market_id": f"{self.run}-{number % MARKETS}",
                "timestamp_ns": number,
                "simulated": True,
            }
            for number in numbers
        ]
        answer = await http.post("/api/events/tick", json=events)
        if answer.status_code == httpx.codes.ACCEPTED and answer.json()["accepted"] == len(events):
            self.acknowledged.update(numbers)


class Reader:
    """Reader of a subscription, by partition."""

    def __init__(self) -> None:
        self.offsets: dict[int, list[int]] = defaultdict(list)
        self.numbers: Counter[int] = Counter()

    async def read(self, subscription: Subscription, enough: Callable[[], bool]) -> None:
        """Read until it is enough."""
        async with asyncio.timeout(PATIENCE_S):
            while not enough():
                batch = await anext(subscription)
                assert (batch.lost, batch.reset) == (0, False)
                for record, event in zip(batch.records(), batch, strict=True):
                    self.offsets[record.partition].append(record.offset)
                    self.numbers[event.timestamp_ns] += 1

    def check(self, publisher: Publisher) -> None:
        """Nothing that was acknowledged may be missing or there twice, and nothing out of order."""
        for offsets in self.offsets.values():
            assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
        assert not publisher.acknowledged - self.numbers.keys()
        assert {number for number in publisher.acknowledged if self.numbers[number] != 1} == set()


def more_than(publisher: Publisher, number: int) -> Callable[[], bool]:
    """Wait for `number` more acknowledgements."""
    least = len(publisher.acknowledged) + number
    return lambda: len(publisher.acknowledged) >= least


async def test_the_leader_dies_and_comes_back(system: RunningSystem, real_kafka: RealKafka) -> None:
    publisher, reader = Publisher(system), Reader()
    async with (
        Stream(system.url, api_key=system.key) as stream,
        stream.subscribe(["tick"], on_slow="lossless") as subscription,
    ):
        async with publisher.running():
            await reader.read(subscription, more_than(publisher, 2000))
            for _ in range(2):
                await asyncio.to_thread(real_kafka.kill)
                await asyncio.to_thread(real_kafka.start)
                await reader.read(subscription, more_than(publisher, 2000))
        await reader.read(subscription, lambda: publisher.acknowledged <= reader.numbers.keys())
        assert stream.connected
    reader.check(publisher)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_the_system_ends_and_comes_back(system: RunningSystem, end: str) -> None:
    publisher, reader = Publisher(system), Reader()
    async with publisher.running():
        async with (
            Stream(system.url, api_key=system.key) as stream,
            stream.subscribe(["tick"], on_slow="lossless") as subscription,
        ):
            await reader.read(subscription, more_than(publisher, 2000))
            port = httpx.URL(system.url).port
            await asyncio.to_thread(getattr(system, end))
            system.environment["API_PORT"] = str(port)
            await asyncio.to_thread(system.start)
            await reader.read(subscription, more_than(publisher, 2000))
            cursor = subscription.cursor
        await asyncio.to_thread(getattr(system, end))
        await asyncio.to_thread(system.start)
        async with Stream(system.url, api_key=system.key) as stream:
            subscription = stream.subscribe(["tick"], on_slow="lossless", from_=cursor)
            await reader.read(subscription, more_than(publisher, 2000))
            least = set(publisher.acknowledged)
            await reader.read(subscription, lambda: least <= reader.numbers.keys())
    publisher.acknowledged &= least
    reader.check(publisher)
