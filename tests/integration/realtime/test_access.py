"""Tests of access checks that are slow, and of access that is revoked."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from mev.auth.model import CredentialKind, Permission, Principal
from mev.realtime.access import PrincipalQuota
from tests.integration.realtime.service import HEADERS, KEY, Service
from tests.services.waits import until_async
from tests.unit.realtime.events import ticks
from tests.unit.realtime.links import client_frame

AUTH = json.dumps({"op": "auth", "api_key": KEY}).encode()
READER = Principal(
    id="key:r",
    name="alice/reader",
    kind=CredentialKind.KEY,
    permissions=frozenset({Permission.STREAM_READ}),
    credential="r",
)


async def test_messages_after_an_auth_are_handled_after_it(service: Service) -> None:
    service.keys.at_once = False
    async with connect(service.url) as ws:
        service.keys.answers.clear()
        for text in (AUTH.decode(), '{"op": "ping", "id": "1"}', '{"op": "ping", "id": "2"}'):
            await ws.send(text)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ws.recv(), 0.05)
        service.keys.answers.set()
        answers = [json.loads(await ws.recv()) for _ in range(3)]
    assert answers == [
        {"op": "authenticated"},
        {"op": "pong", "id": "1"},
        {"op": "pong", "id": "2"},
    ]


async def test_messages_in_one_packet_with_an_auth_are_handled_after_it(service: Service) -> None:
    service.keys.at_once = False
    client = await service.raw_stranger()
    client.send(
        client_frame(1, AUTH),
        client_frame(1, b'{"op": "ping", "id": "1"}'),
        client_frame(1, b'{"op": "ping", "id": "2"}'),
    )
    answers = [json.loads((await client.receive())[1]) for _ in range(3)]
    assert answers == [
        {"op": "authenticated"},
        {"op": "pong", "id": "1"},
        {"op": "pong", "id": "2"},
    ]
    await client.close()


async def test_a_handshake_waits_for_the_answer_and_holds_up_nobody(service: Service) -> None:
    service.keys.at_once = False
    service.keys.answers.clear()
    opening = asyncio.create_task(connect(service.url, additional_headers=HEADERS).__aenter__())
    async with connect(service.url) as other:
        await other.send('{"op": "nope"}')
        assert json.loads(await other.recv())["op"] == "error"
    assert not opening.done()
    service.keys.answers.set()
    ws = await opening
    await ws.send('{"op": "ping"}')
    assert json.loads(await ws.recv()) == {"op": "pong"}
    await ws.close()


async def test_an_answer_that_never_comes_is_a_problem(start: Callable[..., Any]) -> None:
    service: Service = await start(auth_timeout_s=0.05)
    service.keys.at_once = False
    service.keys.answers.clear()
    with pytest.raises(InvalidStatus) as caught:
        await connect(service.url, additional_headers=HEADERS)
    assert caught.value.response.status_code == 503


async def test_who_goes_away_while_being_looked_up_leaves_nothing(service: Service) -> None:
    service.keys.at_once = False
    service.keys.answers.clear()
    client = await service.raw_stranger()
    client.send(client_frame(1, AUTH))
    await asyncio.sleep(0.02)
    client.writer.transport.abort()
    service.keys.answers.set()
    await until_async(lambda: not service.hub.clients)


async def test_a_principal_is_shown_and_dismissed_when_it_may_read_no_longer(
    service: Service,
) -> None:
    service.keys.principal = READER
    async with connect(service.url, additional_headers=HEADERS) as ws:
        assert [client.principal for client in service.hub.clients.values()] == ["alice/reader"]
        service.keys.principal = None
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 4401
    await until_async(lambda: not service.hub.clients)


async def test_a_principal_has_so_many_connections_and_no_more(start: Callable[..., Any]) -> None:
    service: Service = await start(quota=PrincipalQuota(connections=1))
    async with connect(service.url, additional_headers=HEADERS):
        with pytest.raises(InvalidStatus) as caught:
            await connect(service.url, additional_headers=HEADERS)
        assert caught.value.response.status_code == 503
        async with connect(service.url) as ws:
            await ws.send(AUTH.decode())
            assert json.loads(await ws.recv())["code"] == "too_many_connections"
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1013
    await until_async(lambda: not service.hub.clients)
    async with connect(service.url, additional_headers=HEADERS) as ws:
        await ws.send('{"op": "ping"}')
        assert json.loads(await ws.recv()) == {"op": "pong"}


async def test_strangers_are_counted_and_those_who_say_who_they_are_are_not(
    service: Service,
) -> None:
    service.keys.anonymous_clients = 1
    async with connect(service.url):
        with pytest.raises(InvalidStatus) as caught:
            await connect(service.url)
        assert (
            caught.value.response.status_code,
            caught.value.response.headers["Retry-After"],
        ) == (429, "1")
        async with connect(service.url, additional_headers=HEADERS) as ws:
            await ws.send('{"op": "ping"}')
            assert json.loads(await ws.recv()) == {"op": "pong"}


async def test_a_flood_of_messages_is_refused_and_the_connection_stays(
    start: Callable[..., Any],
) -> None:
    service: Service = await start(messages_per_s=10)
    async with connect(service.url, additional_headers=HEADERS) as ws:
        for _ in range(30):
            await ws.send('{"op": "ping"}')
        answers = [json.loads(await ws.recv()) for _ in range(30)]
        assert [answer["op"] for answer in answers[:10]] == ["pong"] * 10
        assert answers[-1]["code"] == "rate_limited"
        assert answers[-1]["retry_after_s"] == 1


async def test_a_principal_has_so_many_keys_in_its_filters(start: Callable[..., Any]) -> None:
    service: Service = await start(quota=PrincipalQuota(keys=100))

    def subscribe(name: str, keys: int) -> str:
        condition = f"market_id in {json.dumps([str(number) for number in range(keys)])}"
        return json.dumps(
            {"op": "subscribe", "id": name, "topics": ["tick"], "filter": [condition]}
        )

    async with (
        connect(service.url, additional_headers=HEADERS) as ws,
        connect(service.url, additional_headers=HEADERS) as other,
    ):
        await ws.send(subscribe("a", 60))
        assert json.loads(await ws.recv())["op"] == "subscribed"
        await other.send(subscribe("b", 41))
        assert json.loads(await other.recv())["code"] == "quota_exceeded"
        await other.send(subscribe("c", 40))
        assert json.loads(await other.recv())["op"] == "subscribed"
        await ws.send(json.dumps({"op": "update", "id": "a", "filter": ["simulated == true"]}))
        assert json.loads(await ws.recv())["op"] == "updated"
        await other.send(subscribe("b", 60))
        assert json.loads(await other.recv())["op"] == "subscribed"


async def test_a_key_set_of_a_hundred_thousand_is_taken_and_looked_at_outside_the_loop(
    start: Callable[..., Any],
) -> None:
    service: Service = await start()
    condition = f"market_id in {json.dumps([f'market-{number:09}' for number in range(100_000)])}"
    async with connect(service.url, additional_headers=HEADERS, max_size=None) as ws:
        await ws.send(
            json.dumps({"op": "subscribe", "id": "a", "topics": ["tick"], "filter": [condition]})
        )
        answer = json.loads(await ws.recv())
        assert (answer["op"], len(answer["filter"][0])) == ("subscribed", 515)
        service.hub.push(ticks([0], market="market-000077777"))
        service.hub.push(ticks([1], market="market-77777"))
        while not (events := json.loads(await ws.recv())["events"]):
            pass  # how far the filter has looked
        assert [event["timestamp_ns"] for event in events] == [0]
