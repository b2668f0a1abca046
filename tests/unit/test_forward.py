"""Requests that a worker passes on: bounded by address and in all, with room for stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from mev.dashboard.routes import ASSETS
from mev.limits.addresses import Addresses
from mev.limits.connections import LOCAL_PEER, ConnectionLimits, ConnectionUse, HttpConnections
from mev.limits.protocol import KILL_SWITCH
from mev.server.forward import Forward, ForwardLimits
from tests.services.waits import until_async

LIMITS = ForwardLimits(total=4, reserved=2, stops=2, body_timeout_s=0.5)
CONTROL = "/api/control/agents"
OTHER = "/api/datasets"


class ControlProcess:
    """Answers requests once it may; counts those that arrived."""

    def __init__(self) -> None:
        self.arrived = 0
        self.may_answer = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.arrived += 1
        await self.may_answer.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()


@asynccontextmanager
async def forwarding(folder: Path) -> AsyncIterator[tuple[Forward, ControlProcess]]:
    control = ControlProcess()
    path = folder / "control.sock"
    async with await asyncio.start_unix_server(control.serve, path):
        forward = Forward(path, LIMITS, Addresses([]))
        try:
            yield forward, control
        finally:
            control.may_answer.set()
            await forward.close()


async def send_to(
    forward: Forward,
    path: str,
    address: str,
    *,
    body: bytes | None = None,
    may_read: asyncio.Event | None = None,
) -> tuple[int, bytes]:
    """Send a GET from `address`, or a POST with a `body`, empty: never; return status and body.

    The response is read once `may_read` is set, if given.
    """
    sent: list[Any] = []
    parts = [body] if body else []
    never = asyncio.Event()

    async def receive() -> Any:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await never.wait()

    async def send(message: Any) -> None:
        if may_read is not None:
            await may_read.wait()
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"api"), *([] if body is None else [(b"content-length", b"2")])],
        "client": (address, 1),
    }
    await forward(scope, receive, send)
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])


async def test_one_address_has_half_and_stops_have_room_of_their_own(tmp_path: Path) -> None:
    async with forwarding(tmp_path) as (forward, control):
        tasks: list[asyncio.Task[tuple[int, bytes]]] = []

        async def passes(path: str, address: str) -> bool:
            task = asyncio.create_task(send_to(forward, path, address))
            tasks.append(task)
            before = control.arrived
            await until_async(lambda: task.done() or control.arrived > before)
            if not task.done():
                return True
            status, body = task.result()
            assert (status, orjson.loads(body)["code"]) == (503, "overloaded")
            return False

        assert [await passes(OTHER, "192.0.2.1") for _ in range(3)] == [True, True, False]
        assert [await passes(OTHER, "192.0.2.2") for _ in range(3)] == [True, True, False]
        assert [await passes(OTHER, "192.0.2.3")] == [False]
        assert not await passes(CONTROL, "192.0.2.1")
        assert [await passes("/", "192.0.2.3"), await passes(CONTROL, "192.0.2.3")] == [True] * 2
        assert not await passes(CONTROL, "192.0.2.4")
        for address in ("192.0.2.1", "192.0.2.4"):
            assert [await passes(KILL_SWITCH, address) for _ in range(2)] == [True, False]
        assert not await passes(KILL_SWITCH, "192.0.2.5")
        control.may_answer.set()
        answers = [status for status, _ in await asyncio.gather(*tasks)]
        assert answers.count(200) == control.arrived == 8
        assert await send_to(forward, OTHER, "192.0.2.1") == (200, b"{}")


async def test_requests_whose_body_never_comes_take_no_place_and_end(tmp_path: Path) -> None:
    async with forwarding(tmp_path) as (forward, control):
        control.may_answer.set()
        unfinished = [
            asyncio.create_task(send_to(forward, KILL_SWITCH, "192.0.2.1", body=b""))
            for _ in range(2 * LIMITS.most)
        ]
        await until_async(lambda: control.arrived == len(unfinished))
        stop = await send_to(forward, KILL_SWITCH, "192.0.2.1", body=b"{}")
        page = await send_to(forward, "/", "192.0.2.1")
        assert (stop[0], page[0]) == (200, 200)
        answers = await asyncio.gather(*unfinished)
        assert {(status, orjson.loads(body)["code"]) for status, body in answers} == {
            (408, "body_too_slow")
        }


@pytest.mark.parametrize("path", [KILL_SWITCH, "/", ASSETS + "index.js"])
async def test_small_answers_that_are_not_read_take_no_place(tmp_path: Path, path: str) -> None:
    may_read = asyncio.Event()
    async with forwarding(tmp_path) as (forward, control):
        control.may_answer.set()
        unread = []
        for number in range(2 * LIMITS.most):
            unread.append(
                asyncio.create_task(send_to(forward, path, "192.0.2.1", may_read=may_read))
            )
            await until_async(lambda: control.arrived > number)
        assert (await send_to(forward, path, "192.0.2.1"))[0] == 200
        may_read.set()
        assert {status for status, _ in await asyncio.gather(*unread)} == {200}


async def test_forwarded_requests_take_no_place_of_commands_on_this_machine() -> None:
    class Open:
        def look(self, now: float) -> None: ...

        def evict(self) -> None:
            raise AssertionError("a connection with a request gives no way")

    commands = HttpConnections(ConnectionLimits(per_address=10), Addresses([]))
    forwarded = commands.of_workers(1000)
    for _ in range(1000):
        connection = Open()
        assert forwarded.enter(connection, LOCAL_PEER) is ConnectionUse.ANY
        forwarded.begin(connection)
    assert commands.enter(Open(), LOCAL_PEER) is ConnectionUse.ANY
