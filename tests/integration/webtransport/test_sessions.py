"""Opening a session, talking in it, ending it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from mev.auth.model import CredentialKind, Permission, Principal
from mev.realtime.webtransport.connection import REFUSED
from mev.realtime.webtransport.framing import close_capsule
from mev.realtime.webtransport.quic import stream_error
from tests.integration.realtime.service import KEY
from tests.integration.webtransport.client import peer
from tests.integration.webtransport.service import Service
from tests.services.waits import until_async

READER = Principal(
    id="key:r",
    name="alice/reader",
    kind=CredentialKind.KEY,
    permissions=frozenset({Permission.STREAM_READ}),
    credential="r",
)
SUBSCRIBE = {"op": "subscribe", "id": "s1", "topics": ["tick"]}


@pytest.mark.parametrize(
    "how",
    [
        {"X_API_Key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"path": f"/api/realtime/wt?ticket={KEY}"},
        {"X_API_Key": KEY, "Origin": "http://localhost:8000"},
    ],
)
async def test_a_conversation_and_frames(service: Service, how: dict[str, str]) -> None:
    async with peer(service.port) as wt:
        assert (await wt.open(**how))[":status"] == "200"
        assert await wt.ask(op="ping", id="p") == {"op": "pong", "id": "p"}
        assert (await wt.ask(**SUBSCRIBE))["op"] == "subscribed"
        service.push(41, 2)
        frame = await wt.frame()
        assert (
            frame.subscription,
            frame.sequence,
            frame.slices[0].first_offset,
            len(frame.slices[0].events),
        ) == ("s1", 0, 41, 2)
        service.push(43, 1)
        assert (await wt.frame()).sequence == 2
        assert [each.link.transport for each in service.hub.clients.values()] == ["webtransport"]


async def test_a_first_message_says_who_it_is(service: Service) -> None:
    async with peer(service.port) as wt:
        assert (await wt.open())[":status"] == "200"
        assert await wt.ask(op="auth", api_key=KEY) == {"op": "authenticated"}
        assert (await wt.ask(**SUBSCRIBE))["op"] == "subscribed"


async def test_messages_after_an_auth_are_handled_after_it(service: Service) -> None:
    service.keys.at_once = False
    async with peer(service.port) as wt:
        await wt.open()
        service.keys.answers.clear()
        messages = [
            {"op": "auth", "api_key": KEY},
            {"op": "ping", "id": "1"},
            {"op": "ping", "id": "2"},
        ]
        wt.send_raw(b"\n\n".join(json.dumps(message).encode() for message in messages) + b"\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wt.hear(), 0.05)
        service.keys.answers.set()
        assert [await wt.hear() for _ in range(3)] == [
            {"op": "authenticated"},
            {"op": "pong", "id": "1"},
            {"op": "pong", "id": "2"},
        ]


async def test_what_is_held_meanwhile_is_bounded(service: Service) -> None:
    service.keys.at_once = False
    async with peer(service.port) as wt:
        await wt.open()
        service.keys.answers.clear()
        wt.say(op="auth", api_key=KEY)
        wt.send_raw(b'{"op": "ping"}\n' * 10_000)
        await wt.until(lambda: wt.terminated)
    await until_async(lambda: service.server.is_empty and not service.hub.clients)


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ({"path": "/api/realtime/other", "X_API_Key": KEY}, "404", "not_found"),
        ({"path": "/", "method": "GET"}, "404", "not_found"),
        ({"method": "GET"}, "400", "bad_handshake"),
        ({"X_API_Key": "wrong"}, "401", "unauthorized"),
        ({"path": "/api/realtime/wt?ticket=wrong"}, "401", "unauthorized"),
        ({"path": "/api/realtime/wt?" + "a=1&" * 20}, "400", "bad_handshake"),
        ({"X_API_Key": KEY, "Origin": "https://evil.example"}, "403", "forbidden_origin"),
        ({"X_API_Key": KEY, "Origin": "null"}, "403", "forbidden_origin"),
        ({"X_API_Key": KEY, "Origin": "http://[::1"}, "403", "forbidden_origin"),
    ],
)
async def test_what_is_wrong_is_answered_with_a_problem(
    service: Service, how: dict[str, str], status: str, code: str
) -> None:
    async with peer(service.port) as wt:
        answer = await wt.open(**how)
        await wt.until(lambda: wt.bodies[wt.session])
        problem = json.loads(wt.bodies[wt.session])
        assert (answer[":status"], answer["content-type"], problem["code"]) == (
            status,
            "application/problem+json",
            code,
        )
        assert (await wt.open(X_API_Key=KEY))[
            ":status"
        ] == "200"  # the connection is as good as before


async def test_a_listed_origin_is_let_in(service: Service) -> None:
    async with peer(service.port) as wt:
        assert (await wt.open(X_API_Key=KEY, Origin="https://desk.example"))[":status"] == "200"


async def test_a_request_waits_for_the_answer_and_holds_up_nobody(service: Service) -> None:
    service.keys.at_once = False
    service.keys.answers.clear()
    async with peer(service.port) as first, peer(service.port) as second:
        first.session = first.request(X_API_Key=KEY)
        first.say(op="ping", id="early")
        await second.open()
        assert (await second.ask(op="nope"))["code"] == "unauthorized"
        assert not first.answers
        service.keys.answers.set()
        assert (await first.answer(first.session))[":status"] == "200"
        assert await first.hear() == {"op": "pong", "id": "early"}


async def test_who_goes_away_while_being_looked_up_leaves_nothing(service: Service) -> None:
    service.keys.at_once = False
    service.keys.answers.clear()
    async with peer(service.port) as wt:
        wt.session = wt.request(X_API_Key=KEY)
        await until_async(lambda: service.counts.connections == 1)
    service.keys.answers.set()
    await until_async(lambda: service.server.is_empty)
    assert not service.hub.clients


async def test_one_session_a_connection(service: Service) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        assert (await wt.answer(wt.request(X_API_Key=KEY)))[":status"] == "503"


async def test_a_full_server_says_so(start: Callable[..., Any]) -> None:
    service: Service = await start(sessions=1)
    async with peer(service.port) as first, peer(service.port) as second:
        await first.open(X_API_Key=KEY)
        answer = await second.open(X_API_Key=KEY)
        assert (answer[":status"], answer["retry-after"]) == ("503", "5")
        first.end()
        await until_async(lambda: not service.counts.sessions)
        assert (await second.open(X_API_Key=KEY))[":status"] == "200"


async def test_an_address_has_so_many_sessions(start: Callable[..., Any]) -> None:
    service: Service = await start(sessions_per_address=1)
    async with peer(service.port) as first, peer(service.port) as second:
        await first.open(X_API_Key=KEY)
        assert (await second.open(X_API_Key=KEY))[":status"] == "503"


async def test_who_says_nothing_is_closed(start: Callable[..., Any]) -> None:
    service: Service = await start(limits={"auth_timeout_s": 0.05})
    async with peer(service.port) as wt:
        await wt.open()
        await wt.until(lambda: wt.closed)
        assert wt.closed is not None
        assert wt.closed.code == 4401


async def test_who_asks_for_nothing_is_closed(start: Callable[..., Any]) -> None:
    service: Service = await start(connect_timeout_s=0.05)
    async with peer(service.port) as wt:
        await wt.until(lambda: wt.terminated)
    await until_async(lambda: service.server.is_empty)


async def test_an_end_that_is_said(service: Service) -> None:
    service.keys.principal = READER
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(**SUBSCRIBE)
        service.keys.principal = None
        await wt.until(lambda: wt.closed)
        assert wt.closed is not None
        assert (wt.closed.code, wt.control_ended) == (4401, True)
        assert "ended" in wt.closed.reason
        wt.end()
        await wt.until(lambda: wt.terminated)
    await until_async(lambda: service.server.is_empty)


@pytest.mark.parametrize(
    "capsule", [b"", close_capsule(0, "bye"), b"\x17\x05hello" + close_capsule(7, "")]
)
async def test_the_end_of_the_client(service: Service, capsule: bytes) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(**SUBSCRIBE)
        wt.end(capsule)
        await wt.until(lambda: wt.terminated)
    await until_async(lambda: service.server.is_empty and not service.hub.clients)


async def test_a_reset_of_the_request_ends_the_session(service: Service) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        wt.quic.reset_stream(wt.session, 0)
        wt.transmit()
        await wt.until(lambda: wt.terminated)
    await until_async(lambda: service.server.is_empty and not service.hub.clients)


async def test_a_lost_connection_leaves_nothing(service: Service) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(**SUBSCRIBE)
    await until_async(lambda: service.server.is_empty and not service.hub.clients)


async def test_a_line_too_long_ends_the_session(start: Callable[..., Any]) -> None:
    service: Service = await start(limits={"message_bytes": 1000, "unauthenticated_bytes": 1000})
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        wt.send_raw(b"x" * 1001)
        await wt.until(lambda: wt.closed)
        assert wt.closed is not None
        assert wt.closed.code == 1009


async def test_other_streams_are_refused_and_datagrams_ignored(start: Callable[..., Any]) -> None:
    service: Service = await start(requests=4)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(op="ping")
        uni = wt.open_uni(b"hello")
        await wt.until(lambda: uni in wt.stopped)
        second = wt.h3.create_webtransport_stream(wt.session)
        wt.quic.send_stream_data(second, b"hello")
        wt.send_datagram(b"hello")
        await wt.until(lambda: second in wt.stopped and second in wt.resets)
        assert {wt.stopped[uni], wt.stopped[second], wt.resets[second]} == {stream_error(REFUSED)}
        await until_async(lambda: service.counts.datagrams_ignored == 1)
        assert await wt.ask(op="ping") == {"op": "pong"}
        assert service.counts.streams_refused == 2
        for _ in range(4):  # enough is enough
            wt.open_uni(b"hello")
        await wt.until(lambda: wt.terminated)


async def test_a_control_stream_that_is_stopped_ends_the_session(service: Service) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(op="ping")
        wt.quic.stop_stream(wt.control, 0)
        wt.transmit()
        await wt.until(lambda: wt.closed)
        assert wt.closed is not None
        assert wt.closed.code == 1002


async def test_much_beside_the_control_stream_ends_the_connection(
    start: Callable[..., Any],
) -> None:
    service: Service = await start(overhead_bytes=10_000)
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        wt.h3.send_data(wt.session, b"\x17\x80\x01\x00\x00" + bytes(20_000), end_stream=False)
        wt.transmit()
        await wt.until(lambda: wt.terminated)


async def test_a_stop_is_said_and_waits_for_what_is_under_way(service: Service) -> None:
    async with peer(service.port) as wt:
        await wt.open(X_API_Key=KEY)
        await wt.ask(**SUBSCRIBE)
        service.push(0, 256, size=500)  # a full frame
        stopping = asyncio.create_task(service.server.close())
        await wt.until(lambda: wt.closed)
        wt.end()
        await stopping
        assert wt.closed is not None
        assert wt.closed.code == 1001
        assert len((await wt.frame()).slices[0].events) == 256
        assert await wt.hear() == {
            "op": "progress",
            "id": "s1",
            "sequence": 256,
            "dropped": 0,
            "dropped_total": 0,
        }  # what was sent at all
        closing = await wt.hear()
        assert (closing["op"], closing["code"], closing["cursors"]) == (
            "closing",
            "going_away",
            {},
        )  # only the client knows what came
