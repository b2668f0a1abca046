"""Tests of a stream whose connections end, are refused, or are not read."""

import asyncio
import logging
import random

import pytest

from mev.client import Cursor, Stream
from mev.client.errors import (
    BadUrlError,
    DisconnectedError,
    ForbiddenError,
    MessageTooBigError,
    NotAServerError,
    StreamError,
    UnauthorizedError,
    UnreachableError,
)
from mev.core.errors import UnavailableError
from mev.wire.frames import Run
from tests.unit.client.server import KEY, LOG, Peer, Server, running


async def test_it_goes_on_where_it_was(
    server: Server, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = stream.subscribe(["tick", "agent_*"], filter=["simulated == true"])
    peer = await server.peer()
    await peer.begun(5, topics=["tick", "agent_metrics"])
    await peer.events(6, 2, partition=0)
    await peer.events(1, 1, partition=1)
    await peer.events(6, 1, partition=2)
    assert [len(await anext(subscription)) for _ in range(2)] == [2, 1]
    peer.drop()  # with a batch that was not taken
    peer = await server.peer()
    request = await peer.begun(start="resumed", topics=["tick", "agent_metrics"])
    assert request["from"] == {
        "cursor": {"tick": {"0": 8, "1": 2, "2": 7}, "agent_metrics": {"0": 5}},
        "log": LOG,
    }
    assert (request["topics"], request["filter"]) == (
        ["tick", "agent_metrics"],
        ["simulated == true"],
    )
    await peer.events(8, 4)
    assert [len(await anext(subscription)) for _ in range(2)] == [1, 4]
    assert [
        record.getMessage().partition(";")[0]
        for record in caplog.records
        if record.name.startswith("mev.")
    ] == [
        "the connection ended: it broke off",
        f"connected to {stream._settings.url} again",
    ]


async def test_a_subscription_without_an_answer_begins_again(
    server: Server, stream: Stream
) -> None:
    stream.subscribe(["tick"], from_="earliest")
    peer = await server.peer()
    first = await peer.heard()
    peer.drop()
    assert await (await server.peer()).heard() == first


async def test_the_word_of_a_server_that_closes_counts(
    server: Server, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        if seconds != 20.0:  # of the watch
            pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", pause)
    stream.subscribe(["tick"])
    peer = await server.peer()
    await peer.begun(5)
    await peer.say(
        "closing",
        code="too_slow",
        detail="too slow",
        retry_after_s=3,
        log=LOG,
        cursors={"s1": {"tick": {"0": 90}}, "s7": {}},
    )
    await peer.close(1013)
    request = await (await server.peer()).heard()
    assert request["from"] == {"cursor": {"tick": {"0": 90}}, "log": LOG}
    assert pauses == [3.0]


async def test_a_server_that_is_full_is_asked_again_when_it_says(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[tuple[int, dict[str, str], bytes]] = [
        (503, {"Retry-After": "0"}, b'{"detail": "full"}'),
        (429, {}, b"no problem object"),
    ]
    server.refuse = lambda _request: answers.pop(0) if answers else None
    async with Stream(server.url, api_key=KEY) as stream:
        assert stream.connected
        assert stream.problem is None
    assert server.handshakes == 3
    monkeypatch.undo()
    pauses = [Stream("http://h", api_key="")._pause(7.0) for _ in range(50)]
    assert min(pauses) >= 7
    assert max(pauses) <= 7.25


def test_pauses_grow_and_are_drawn_from_all_below(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    monkeypatch.setattr(random, "uniform", draw)
    stream = Stream("http://h", api_key="")
    for _ in range(9):
        stream._pause(0)
    assert asked == [(0, 0.25), (0, 0.5), (0, 1), (0, 2), (0, 4), (0, 8), (0, 15), (0, 15), (0, 15)]
    assert stream._pause(1e9) == 300


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (401, UnauthorizedError, "not so; check api_key"),
        (403, ForbiddenError, "permission stream:read"),
        (404, NotAServerError, "check the address"),
    ],
)
async def test_a_refused_handshake_says_the_remedy(
    server: Server, status: int, error: type[StreamError], remedy: str
) -> None:
    server.refuse = lambda _request: (status, {}, b'{"detail": "not so"}')
    with pytest.raises(error, match=remedy):
        async with Stream(server.url, api_key=KEY):
            pass
    assert server.handshakes == 1


@pytest.mark.parametrize(
    ("code", "reason", "error", "words"),
    [
        (
            4401,
            "this key was revoked",
            UnauthorizedError,
            "this key was revoked; start again with one that is",
        ),
        (4403, "", DisconnectedError, "an operator ended this connection; ask them"),
        (1008, "", ForbiddenError, "not permitted; the stream needs a key"),
        (1009, "", MessageTooBigError, "shorter filters"),
    ],
)
async def test_some_ends_are_final(
    server: Server, stream: Stream, code: int, reason: str, error: type[StreamError], words: str
) -> None:
    subscription, other = stream.subscribe(["tick"]), stream.subscribe(["tick"])
    peer = await server.peer()
    await peer.begun(5)
    await peer.close(code, reason)
    with pytest.raises(error, match=words):
        await anext(subscription)
    with pytest.raises(error, match=words):
        await other.started()
    with pytest.raises(error, match=words):
        await anext(stream.subscribe(["tick"]))
    assert not stream.connected
    assert server.handshakes == 1


async def test_a_credential_that_can_be_renewed_is(server: Server) -> None:
    keys = iter(["first", "second"])
    restarting = iter([False, True, False])
    async with Stream(
        server.url, api_key=lambda: _away("restarting") if next(restarting) else next(keys)
    ) as stream:
        stream.subscribe(["tick"])
        peer = await server.peer()
        assert peer.authorization == "Bearer first"
        await peer.begun()
        await peer.close(4401, "the token has ended")
        peer = await server.peer()
        assert peer.authorization == "Bearer second"


async def test_a_credential_that_fails_ends_the_stream(server: Server) -> None:
    def broken() -> str:
        raise KeyError("API_KEY")

    with pytest.raises(StreamError, match="KeyError"):
        async with Stream(server.url, api_key=broken):
            pass


def _away(detail: str) -> str:
    raise UnavailableError(detail)


async def test_nobody_there(unused_tcp_port: int) -> None:
    with pytest.raises(UnreachableError, match=r"does not answer: .*is the system running there"):
        async with Stream(
            f"http://127.0.0.1:{unused_tcp_port}", api_key=KEY, connect_timeout_s=0.2
        ):
            pass


async def test_another_protocol() -> None:
    async with running(subprotocols=None) as server:
        with pytest.raises(NotAServerError, match="without mev"):
            async with Stream(server.url, api_key=KEY):
                pass


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h", "http://", "http://h:x", ""])
def test_no_address(url: str) -> None:
    with pytest.raises(BadUrlError, match="for instance http"):
        Stream(url, api_key=KEY)


async def test_something_else_in_between_while_the_server_is_away(
    server: Server, stream: Stream
) -> None:
    stream.subscribe(["tick"])
    peer = await server.peer()
    await peer.begun(5)
    answers: list[tuple[int, dict[str, str], bytes]] = [(404, {}, b""), (502, {}, b"")]
    server.refuse = lambda _request: answers.pop(0) if answers else None
    peer.drop()
    await (await server.peer()).begun(5)


async def test_a_socket_is_not_read_when_the_user_does_not(server: Server) -> None:
    async with Stream(server.url, api_key=KEY, buffer_bytes=100_000) as stream:
        subscription = stream.subscribe(["tick"])
        peer = await server.peer()
        await peer.begun(0)
        sent, all_of_it = 0, 1000

        async def send() -> None:
            nonlocal sent
            while sent < all_of_it:
                await peer.frame([Run("mev.tick.v1", 0, [sent], [bytes(100_000)])])
                sent += 1

        sending, still = asyncio.create_task(send()), -1
        while still != sent:
            still = sent
            await asyncio.sleep(0.3)
        assert not sending.done()
        assert sum(batch.size for batch in subscription._state._waiting) <= 200_100
        async with asyncio.timeout(30):
            offsets = [next((await anext(subscription)).records()).offset for _ in range(all_of_it)]
        assert offsets == list(range(all_of_it))


async def test_a_stream_closes_at_once_although_it_is_not_read(server: Server) -> None:
    async with Stream(server.url, api_key=KEY, buffer_bytes=1) as stream:
        subscription = stream.subscribe(["tick"])
        peer = await server.peer()
        await peer.begun(0)
        sending = asyncio.create_task(_flood(peer))
        await anext(subscription)
    await peer.gone.wait()
    assert peer.close_code == 1000  # it was not broken off
    sending.cancel()


async def _flood(peer: Peer) -> None:
    first = 0
    while True:
        await peer.events(first, 1000)
        first += 1000


async def test_a_server_that_says_nothing_is_left(server: Server) -> None:
    async with Stream(server.url, api_key=KEY, idle_timeout_s=0.05) as stream:
        stream.subscribe(["tick"])
        peer = await server.peer()
        await peer.begun(5)
        peer.stall()
        again = await server.peer()
        await again.begun(5)


async def test_a_user_who_reads_nothing_is_no_silent_server(server: Server) -> None:
    async with Stream(server.url, api_key=KEY, idle_timeout_s=0.02, buffer_bytes=1) as stream:
        subscription = stream.subscribe(["tick"])
        peer = await server.peer()
        await peer.begun(0)
        for first in range(30):
            await peer.events(first, 1)
        await asyncio.sleep(0.2)
        for _ in range(30):
            await anext(subscription)
        assert server.handshakes == 1


async def test_a_message_above_the_limit(server: Server) -> None:
    async with Stream(server.url, api_key=KEY, max_message_bytes=10_000) as stream:
        subscription = stream.subscribe(["tick"])
        peer = await server.peer()
        await peer.begun(0)
        await peer.events(0, 1000)
        with pytest.raises(MessageTooBigError, match="larger max_message_bytes"):
            await anext(subscription)


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"a": 1}'])
async def test_nonsense_ends_the_connection_alone(
    server: Server, stream: Stream, text: str
) -> None:
    stream.subscribe(["tick"])
    peer = await server.peer()
    await peer.begun(5)
    await peer.say_anything(text)
    assert (await (await server.peer()).heard())["from"] == {
        "cursor": {"tick": {"0": 5}},
        "log": LOG,
    }


async def test_leaving_without_a_connection(server: Server, stream: Stream) -> None:
    subscription = stream.subscribe(["tick"])
    peer = await server.peer()
    await peer.begun(5)
    leaving = asyncio.create_task(subscription.unsubscribe())
    await peer.heard()
    peer.drop()
    assert await leaving == 0
    assert subscription.cursor == Cursor({"tick": {0: 5}}, LOG)
    other = stream.subscribe(["bundle"])
    request = await (await server.peer()).begun()
    assert request["topics"] == ["bundle"]
    await other.started()


async def test_why_the_server_closes_is_said(
    server: Server, stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    stream.subscribe(["tick"])
    peer = await server.peer()
    await peer.say("error", id=None, code="rate_limited", detail="too many messages")
    await peer.close(1013)
    await server.peer()
    assert "too many messages" in caplog.text
    assert "no room" in caplog.text
