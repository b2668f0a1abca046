"""The WebSocket service inside a real server, driven through its port."""

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from mev.realtime.routes import page
from mev.realtime.websocket.connection import PATH
from mev.realtime.websocket.handshake import SUBPROTOCOL
from mev.wire.pb.events_pb2 import Tick
from mev.wire.pb.stream_pb2 import Frame
from mev.wire.resume import encode
from tests.integration.realtime.service import HEADERS, KEY, Service
from tests.services.waits import until_async
from tests.unit.realtime.links import client_frame

WHAT_IS_USUAL: dict[str, object] = {
    "filter": [],
    "on_slow": "drop_oldest",
    "max_rate": None,
    "delivery": "stream",
    "start": "live",
    "log": "",
    "cursor": {"tick": {}},
    "resume": encode("", {}, ["mev.tick.v1"]),
}
SUBSCRIBE = '{"op": "subscribe", "id": "s1", "topics": ["tick"]}'
STRANGERS = [
    SUBSCRIBE,
    "nonsense",
    '{"op": "auth", "api_key": "wrong"}',
    '{"op": "auth", "api_key": "\\ud800"}',
    b"\x00",
]


def protobuf(service: Service) -> connect:
    return connect(service.url, additional_headers=HEADERS, subprotocols=[Subprotocol(SUBPROTOCOL)])


async def ask(ws: ClientConnection, message: str) -> dict[str, Any]:
    """Send a message and return the next one."""
    await ws.send(message)
    return await answer(ws)


async def answer(ws: ClientConnection) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(await ws.recv(decode=True))
    return fields


async def read_frame(ws: ClientConnection) -> Frame:
    return Frame.FromString(await ws.recv(decode=False))


async def test_a_conversation_by_hand(service: Service) -> None:
    async with connect(service.url) as ws:
        assert ws.subprotocol is None
        assert await ask(ws, json.dumps({"op": "auth", "api_key": KEY})) == {"op": "authenticated"}
        assert await ask(ws, '{"op": "ping", "id": "p"}') == {"op": "pong", "id": "p"}
        subscribed = await ask(ws, SUBSCRIBE)
        assert subscribed == {"op": "subscribed", "id": "s1", "topics": ["tick"], **WHAT_IS_USUAL}
        service.push(41, 2)
        events = await answer(ws)
        assert [(event["type"], event["timestamp_ns"]) for event in events.pop("events")] == [
            ("tick", 41),
            ("tick", 42),
        ]
        places = {
            "cursor": {"tick": {"0": 43}},
            "resume": encode("", {("mev.tick.v1", 0): 43}, ["mev.tick.v1"]),
        }
        none = {"dropped": 0, "dropped_total": 0, "queued": 0, "lag_ms": 0}
        assert events == {"op": "events", "id": "s1", "published_ms": [], **places, **none}
        assert (await ask(ws, SUBSCRIBE))["code"] == "duplicate_id"
        assert await ask(ws, '{"op": "unsubscribe", "id": "s1"}') == {
            "op": "unsubscribed",
            "id": "s1",
            "sequence": 2,
            "dropped": 0,
            "dropped_total": 0,
        }
        service.push(43, 1)
        error = await ask(ws, '{"op": "subscribe", "id": "s2", "topics": ["tock"]}')
        assert (error["op"], error["id"], error["code"], error["field"]) == (
            "error",
            "s2",
            "unknown_topic",
            "topics",
        )
        await ws.send(b"binary")
        assert (await answer(ws))["code"] == "unsupported"


@pytest.mark.parametrize("deflate", [True, False])
async def test_json_is_compressed_only_where_it_is_switched_on(
    start: Callable[..., Any], *, deflate: bool
) -> None:
    service = await start(deflate=deflate)
    async with connect(service.url, additional_headers=HEADERS, compression="deflate") as ws:
        assert [extension.name for extension in ws.protocol.extensions] == [
            "permessage-deflate"
        ] * deflate
        long_id = "s" * 64
        await ask(ws, json.dumps({"op": "subscribe", "id": long_id, "topics": ["tick"]}))
        service.push(0, 100)
        events = await answer(ws)
        assert [event["timestamp_ns"] for event in events["events"]] == list(range(100))
        pong = await ask(ws, json.dumps({"op": "ping", "id": "p" * 64}))
        assert pong == {"op": "pong", "id": "p" * 64}
    protocols = [Subprotocol("mev.v1.protobuf")]
    async with connect(
        service.url, additional_headers=HEADERS, subprotocols=protocols, compression="deflate"
    ) as ws:
        assert ws.protocol.extensions == []


async def test_programs_get_frames_and_json_answers(service: Service) -> None:
    async with protobuf(service) as ws:
        assert ws.subprotocol == SUBPROTOCOL
        assert (await ask(ws, SUBSCRIBE))["op"] == "subscribed"
        service.push(7, 600)
        frames = [await read_frame(ws) for _ in range(3)]
        sizes = [[len(part.events) for part in frame.slices] for frame in frames]
        assert sizes == [[256], [256], [88]]
        assert [frame.slices[0].first_offset for frame in frames] == [7, 263, 519]
        assert Tick.FromString(frames[2].slices[0].events[87]).timestamp_ns == 606


async def test_both_encodings_of_one_topic_set_get_the_same(service: Service) -> None:
    async with (
        protobuf(service) as program,
        connect(service.url, additional_headers=HEADERS) as person,
    ):
        for ws in (program, person):
            await ask(ws, SUBSCRIBE)
        service.push(0, 5)
        frame, text = await read_frame(program), await answer(person)
        assert len(frame.slices[0].events) == len(text["events"]) == 5


@pytest.mark.parametrize("headers", [HEADERS, {"Authorization": f"Bearer {KEY}"}])
async def test_a_key_in_the_request_is_enough(service: Service, headers: dict[str, str]) -> None:
    async with connect(service.url, additional_headers=headers) as ws:
        assert await ask(ws, '{"op": "ping"}') == {"op": "pong"}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (PATH, {"X-API-Key": "wrong"}, 401),
        (PATH, {"Authorization": "Bearer wrong"}, 401),
        ("/api/realtime/other", HEADERS, 404),
        (PATH, {**HEADERS, "Origin": "https://evil.example"}, 403),
    ],
)
async def test_a_handshake_is_refused_with_a_problem(
    service: Service, path: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"ws://127.0.0.1:{service.port}{path}", additional_headers=headers)
    response = caught.value.response
    assert (response.status_code, response.headers["Content-Type"]) == (
        status,
        "application/problem+json",
    )
    assert json.loads(response.body or b"")["status"] == status
    assert service.hub.clients == {}


async def test_pages_of_listed_origins_and_of_the_server_may_connect(service: Service) -> None:
    for origin in ("https://desk.example", f"http://127.0.0.1:{service.port}"):
        async with connect(service.url, additional_headers={**HEADERS, "Origin": origin}) as ws:
            assert await ask(ws, '{"op": "ping"}') == {"op": "pong"}


async def test_the_connection_after_the_last_is_refused(start: Callable[..., Any]) -> None:
    service = await start(connections=1)
    async with connect(service.url, additional_headers=HEADERS):
        with pytest.raises(InvalidStatus) as caught:
            await connect(service.url, additional_headers=HEADERS)
    assert (caught.value.response.status_code, caught.value.response.headers["Retry-After"]) == (
        503,
        "5",
    )
    await until_async(lambda: not service.hub.full)
    async with connect(service.url, additional_headers=HEADERS):
        assert service.hub.full


async def test_http_is_served_on_the_same_port(service: Service) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).endswith(b"hello")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("message", STRANGERS)
async def test_nothing_is_done_for_strangers(
    start: Callable[..., Any], message: str | bytes
) -> None:
    service: Service = await start(auth_timeout_s=600)
    async with connect(service.url) as ws:
        await ws.send(message)
        assert (await answer(ws))["code"] == "unauthorized"
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 4401


async def test_a_stranger_has_little_time(start: Callable[..., Any]) -> None:
    service = await start(auth_timeout_s=0.02)
    async with connect(service.url) as ws:
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 4401


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        pytest.param(b"\x81\x02hi", 1002, id="not masked"),
        pytest.param(client_frame(1, b"x", reserved=0x40), 1002, id="reserved bit"),
        pytest.param(client_frame(0, b"x"), 1002, id="continuation of nothing"),
        pytest.param(client_frame(8, b"\x00"), 1002, id="close payload"),
        pytest.param(client_frame(1, b"\xff\xfe"), 1007, id="not UTF-8"),
        pytest.param(client_frame(1, b" " * 70_000), 1009, id="too big"),
        pytest.param(
            client_frame(1, bytes(60_000), final=False) + client_frame(0, bytes(60_000)),
            1009,
            id="too big in fragments",
        ),
    ],
)
async def test_what_breaks_the_protocol_closes_the_connection(
    start: Callable[..., Any], frames: bytes, code: int
) -> None:
    service: Service = await start(close_timeout_s=30, message_bytes=65_536)
    client = await service.raw()
    client.send(frames)
    assert await client.close_code() == code
    await until_async(lambda: not service.hub.clients)


async def test_fragments_pings_and_close_are_handled(service: Service) -> None:
    client = await service.raw(Connection="keep-alive, Upgrade")
    client.send(
        client_frame(1, b'{"op": ', final=False),
        client_frame(9, b"alive?"),
        client_frame(0, b'"ping"}'),
    )
    assert await client.receive() == (10, b"alive?")
    assert await client.receive() == (1, b'{"op":"pong"}')
    client.send(client_frame(8, (3000).to_bytes(2) + b"done"))
    assert await client.close_code() == 3000


async def test_nothing_follows_a_close_frame(service: Service) -> None:
    client = await service.raw()
    client.send(
        client_frame(1, b'{"op": "auth", "api_key": "wrong"}'),
        client_frame(9, b"alive?"),
        client_frame(1, b'{"op": "ping"}'),
    )
    assert (await client.receive())[0] == 1
    assert await client.close_code() == 4401


async def test_bytes_may_come_one_by_one(service: Service) -> None:
    client = await service.raw()
    for byte in client_frame(1, b'{"op": "ping"}'):
        client.send(bytes((byte,)))
        await client.writer.drain()
        await asyncio.sleep(0)
    assert await client.receive() == (1, b'{"op":"pong"}')
    await client.close()


async def test_silent_clients_are_pinged_then_closed(start: Callable[..., Any]) -> None:
    service = await start(ping_interval_s=0.03)
    client = await service.raw()
    assert await client.receive() == (9, b"")
    assert await client.close_code() == 1001


async def test_clients_that_answer_pings_stay(start: Callable[..., Any]) -> None:
    service = await start(ping_interval_s=0.1)
    async with protobuf(service) as ws:
        await asyncio.sleep(0.6)
        assert await ask(ws, '{"op": "ping"}') == {"op": "pong"}


async def test_a_client_that_vanishes_is_forgotten(service: Service) -> None:
    client = await service.raw()
    client.send(client_frame(1, SUBSCRIBE.encode()))
    await client.receive()
    client.writer.transport.abort()
    await until_async(lambda: not service.hub.clients)
    service.push(0, 300)


async def test_clients_are_told_that_the_server_stops(start: Callable[..., Any]) -> None:
    service = await start(close_timeout_s=0.05)
    silent = await service.raw()
    async with protobuf(service) as ws:
        await service.stop()
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1001
    assert (await silent.receive())[0] == 8
    await silent.close()


async def test_a_slow_client_loses_the_oldest_and_delays_nobody(start: Callable[..., Any]) -> None:
    soft, queue, number = 64 * 1024, 256 * 1024, 60_000
    # Without ticks, so that only the transport's own signals move the queue on.
    service: Service = await start(soft_buffer_bytes=soft, queue_bytes=queue, tick_s=60)
    slow = await service.raw(Sec_WebSocket_Protocol=SUBPROTOCOL)
    slow.send(client_frame(1, SUBSCRIBE.encode()))
    await slow.receive()
    slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
    async with protobuf(service) as fast:
        await ask(fast, SUBSCRIBE)
        received = 0
        for first in range(0, number, 256):
            service.push(first, 256, size=600)
            frame = await read_frame(fast)
            received += sum(len(part.events) for part in frame.slices)
            assert frame.dropped == 0
        assert received == -(-number // 256) * 256
    slow_info = next(info for info in page(service.hub.clients, 0, 10, {}) if info.dropped)
    frame_bytes = 256 * 700
    assert slow_info.queued_bytes <= soft + queue + 2 * frame_bytes
    slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
    offsets: list[int] = []
    dropped = 0
    while len(offsets) + dropped < received:
        _, payload = await slow.receive()
        frame = Frame.FromString(payload)
        dropped += frame.dropped
        offsets += [part.first_offset + i for part in frame.slices for i in range(len(part.events))]
    assert dropped == slow_info.dropped > 0
    assert len(offsets) + dropped == received
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == received - 1
    await slow.close()


async def test_a_client_that_stops_reading_is_disconnected(start: Callable[..., Any]) -> None:
    service: Service = await start(soft_buffer_bytes=1024, queue_bytes=1024, stall_timeout_s=0.1)
    stalled = await service.raw(Sec_WebSocket_Protocol=SUBPROTOCOL)
    stalled.send(client_frame(1, SUBSCRIBE.encode()))
    await stalled.receive()
    stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
    stalled.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    first = 0
    while service.hub.clients:
        service.push(first, 256, size=600)
        first += 256
        await asyncio.sleep(0.002)
    await stalled.close()
