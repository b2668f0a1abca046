"""Server-Sent Events over an ASGI server in memory: slow and vanishing readers, exact accounts."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import orjson
import pytest

from mev.auth.dependencies import PRINCIPAL
from mev.auth.model import MASTER
from mev.realtime.access import StreamAccess
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.sse import EventStreamRoute
from mev.wire.registry import EVENT_TYPES
from tests.services.waits import until_async
from tests.unit.realtime.events import ticks


class Request:
    """One request; `reading` says whether its client takes what is sent."""

    def __init__(self, hub: Hub, query: str = "topics=tick") -> None:
        self.sent: list[dict[str, Any]] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self._gone = asyncio.Event()
        guard = StreamAccess(hub, None)  # type: ignore[arg-type]
        scope = {
            "type": "http",
            "method": "GET",
            "headers": [],
            "query_string": query.encode(),
            PRINCIPAL: MASTER,
        }
        self.task = asyncio.create_task(
            EventStreamRoute(hub, guard)(scope, self._receive, self._send)
        )

    async def leave(self) -> None:
        self._gone.set()
        await self.task

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Return the JSON messages that the client has taken."""
        body = b"".join(message.get("body", b"") for message in self.sent)
        return list(_data(body))

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reading.wait()
        self.sent.append(message)


def _data(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.split(b"\n"):
        if line.startswith(b"data: "):
            yield cast("dict[str, Any]", orjson.loads(line[6:]))


def make_hub(**limits: float) -> Hub:
    values: Any = {"batch_window_ms": 1, "tick_s": 0.01, "json_events_per_s": 10**6, **limits}
    return Hub(EVENT_TYPES, HubLimits(**values))


async def test_slow_reader_loses_the_oldest_and_every_loss_is_counted() -> None:
    hub = make_hub(soft_buffer_bytes=2000, queue_bytes=5000, batch_max_size=10)
    request = Request(hub)
    await until_async(lambda: request.messages)
    request.reading.clear()
    for first in range(0, 2000, 10):
        hub.push(ticks(range(first, first + 10)))
    (client,) = hub.clients.values()
    await until_async(lambda: client.link.backlog() and client.is_behind)
    assert client.link.backlog() <= 2000 + 2000
    request.reading.set()

    def account() -> int:
        events = [message for message in request.messages if message["op"] == "events"]
        return sum(len(message["events"]) + message["dropped"] for message in events)

    await until_async(lambda: account() == 2000)
    dropped = sum(message.get("dropped", 0) for message in request.messages)
    offsets = [
        event["timestamp_ns"] for message in request.messages for event in message.get("events", ())
    ]
    assert 0 < dropped < 2000
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == 1999
    await request.leave()
    assert hub.clients == {}
    hub.close()


async def test_reader_that_is_pinged_stays_though_it_never_answers() -> None:
    hub = make_hub(ping_interval_s=0.02)
    request = Request(hub)
    await until_async(
        lambda: b"".join(m.get("body", b"") for m in request.sent).count(b": keep-alive") > 6
    )
    assert len(hub.clients) == 1
    await request.leave()
    hub.close()


async def test_reader_that_takes_nothing_is_given_up() -> None:
    hub = make_hub(stall_timeout_s=0.05)
    request = Request(hub)
    await until_async(lambda: request.messages)
    request.reading.clear()
    hub.push(ticks(range(10)))
    (client,) = hub.clients.values()
    await until_async(client.link.backlog)
    await until_async(lambda: getattr(client.link, "_ended", False))
    assert len(getattr(client.link, "_pending", b"x")) == 0
    request.reading.set()
    await request.task
    assert hub.clients == {}
    hub.close()


@pytest.mark.parametrize("query", ["topics=tick", "topics=tick&from=earliest"])
async def test_refused_and_left_requests_leave_no_connection(query: str) -> None:
    hub = make_hub()
    request = Request(hub, query)  # without a past, `earliest` is refused
    if "from" in query:
        await request.task
        assert request.sent[0]["status"] == 400
        assert orjson.loads(request.sent[1]["body"])["code"] == "unsupported"
    else:
        await until_async(lambda: request.messages)
        await request.leave()
    assert hub.clients == {}
    assert not hub._groups
    hub.close()


async def test_connection_limit_is_a_problem() -> None:
    hub = make_hub(connections=1)
    first = Request(hub)
    await until_async(lambda: first.messages)
    second = Request(hub)
    await second.task
    assert (second.sent[0]["status"], orjson.loads(second.sent[1]["body"])["code"]) == (
        503,
        "too_many_connections",
    )
    await first.leave()
    hub.close()
