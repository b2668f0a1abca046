"""A stream against a server that follows a script."""

import asyncio
import json
from datetime import datetime, timedelta, timezone

import pytest

from mev.client import Cursor, Gap, Record, Resume, Slot, Stream
from mev.client.cursor import Start
from mev.client.errors import RefusedError, StreamError, UndecodableEventError
from mev.wire.frames import Run
from mev.wire.pb.events_pb2 import Tick
from tests.unit.client.server import KEY, LOG, Server, tick


async def test_a_batch_gives_its_events_and_where_they_are(server: Server, stream: Stream) -> None:
    subscription = stream.subscribe(
        ["tick"], filter=["bid_price > 1"], on_slow="conflate", max_rate=7
    )
    peer = await server.peer()
    assert peer.authorization == f"Bearer {KEY}"
    assert await peer.begun(40) == {
        "op": "subscribe",
        "id": "s1",
        "topics": ["tick"],
        "filter": ["bid_price > 1"],
        "on_slow": "conflate",
        "max_rate": 7,
        "from": "live",
    }
    offsets = [41, 42, 47]
    runs = [
        Run("mev.tick.v1", 0, offsets, [tick(n).SerializeToString() for n in offsets]),
        Run("mev.tick.v1", 3, [5], [b""]),
    ]
    await peer.frame(runs, dropped=6, queued=8, lag_ms=9)
    batch = await anext(subscription)
    assert list(batch) == [tick(41), tick(42), tick(47), Tick()]
    assert all(type(event) is Tick for event in batch)
    assert [(record.topic, record.partition, record.offset) for record in batch.records()] == [
        ("tick", 0, 41),
        ("tick", 0, 42),
        ("tick", 0, 47),
        ("tick", 3, 5),
    ]
    assert next(iter(batch.records())).value == tick(41).SerializeToString()
    assert next(iter(batch.records())).message == tick(41)
    assert (
        len(batch),
        batch.dropped,
        batch.lost,
        batch.queued,
        batch.lag_ms,
        batch.sent_at_ns,
    ) == (4, 6, 6, 8, 9, 1)
    assert batch.cursor == subscription.cursor == Cursor({"tick": {0: 48, 3: 6}}, LOG)
    assert batch.subscription == "s1"
    assert subscription.topics == ("tick",)
    await peer.frame([Run("mev.tick.v1", 3, [60], [])])
    assert (len(await anext(subscription)), subscription.cursor) == (
        0,
        Cursor({"tick": {0: 48, 3: 60}}, LOG),
    )


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("earliest", "earliest"),
        (
            datetime(2026, 11, 22, 12, tzinfo=timezone(timedelta(hours=2))),
            {"time": "2026-11-22T12:00:00+02:00"},
        ),
        (Slot(254170887), {"slot": 254170887}),
        (Resume("YWJj"), {"resume": "YWJj"}),
        (Cursor({"tick": {0: 4711}}), {"cursor": {"tick": {"0": 4711}}}),
        (Cursor({"tick": {0: 4711}}, "x"), {"cursor": {"tick": {"0": 4711}}, "log": "x"}),
    ],
)
async def test_where_to_start(server: Server, stream: Stream, start: Start, said: object) -> None:
    stream.subscribe(["tick"], from_=start)
    assert (await (await server.peer()).heard())["from"] == said


async def test_the_token_of_the_last_batch_taken_is_kept(server: Server, stream: Stream) -> None:
    subscription = stream.subscribe(["tick"], from_=Resume("before"))
    assert subscription.resume == "before"
    peer = await server.peer()
    await peer.begun(5, start="gap", gaps={"tick": {"0": {"from": 2, "to": 5}}}, resume="start")
    await subscription.started()
    assert subscription.resume == "start"
    await peer.events(5, 1, resume="after-5")
    await peer.events(6, 1, resume="after-6")
    assert [(await anext(subscription)).resume for _ in range(2)] == ["start", "after-5"]
    assert subscription.resume == "after-5"


async def test_snapshot_comes_first_and_is_no_place_in_the_log(
    server: Server, stream: Stream
) -> None:
    subscription = stream.subscribe(["tick"], snapshot=True)
    peer = await server.peer()
    request = await peer.heard()
    assert request == {
        "op": "subscribe",
        "id": "s1",
        "topics": ["tick"],
        "on_slow": "drop_oldest",
        "snapshot": True,
    }
    await peer.subscribed(request, 40, resume="at-40")
    await peer.events(7, 2, snapshot_left=1)
    await peer.events(30, 1, snapshot_left=0)
    await peer.events(40, 1, resume="at-41")
    batches = [await anext(subscription) for _ in range(3)]
    assert [(list(batch), batch.snapshot_left, batch.resume) for batch in batches] == [
        ([tick(7), tick(8)], 1, "at-40"),
        ([tick(30)], 0, "at-40"),
        ([tick(40)], None, "at-41"),
    ]
    assert [batch.cursor for batch in batches] == [
        Cursor({"tick": {0: offset}}, LOG) for offset in (40, 40, 41)
    ]
    peer.drop()
    again = await (await server.peer()).heard()
    assert again["from"] == {"cursor": {"tick": {"0": 41}}, "log": LOG}
    assert "snapshot" not in again


async def test_snapshot_that_was_cut_off_is_asked_for_again(server: Server, stream: Stream) -> None:
    subscription = stream.subscribe(["tick"], snapshot=True)
    peer = await server.peer()
    await peer.begun(40)
    await peer.events(7, 2, snapshot_left=1)
    await anext(subscription)
    peer.drop()
    peer = await server.peer()
    request = await peer.begun(44)
    assert request["snapshot"] is True
    assert "from" not in request
    await peer.frame([], snapshot_left=0)
    batch = await anext(subscription)
    assert (len(batch), batch.snapshot_left, batch.cursor) == (0, 0, Cursor({"tick": {0: 44}}, LOG))


async def test_snapshot_of_the_past_is_refused(stream: Stream) -> None:
    with pytest.raises(ValueError, match="a snapshot is of now"):
        stream.subscribe(["tick"], snapshot=True, from_="earliest")


async def test_what_cannot_be_said_is_refused_at_once(stream: Stream) -> None:
    with pytest.raises(ValueError, match="needs a time zone"):
        stream.subscribe(["tick"], from_=datetime(2026, 11, 22))  # noqa: DTZ001
    with pytest.raises(TypeError, match=r"for instance \['tick'\]"):
        stream.subscribe("tick")


async def test_subscriptions_share_a_connection(server: Server, stream: Stream) -> None:
    first, second = stream.subscribe(["tick"]), stream.subscribe(["tick"], filter=["bid_price > 1"])
    peer = await server.peer()
    await peer.begun()
    await peer.events(0, 1)  # made when there was one
    await peer.begun()
    await peer.events(1, 2, subscription="s2")
    await peer.events(3, 3, subscription="s1")
    await peer.events(3, 3, subscription="s9")  # of nobody here
    assert [len(await anext(first)), len(await anext(first)), len(await anext(second))] == [1, 3, 2]
    leaving = asyncio.create_task(first.unsubscribe())
    assert await peer.heard() == {"op": "unsubscribe", "id": "s1"}
    await peer.say("unsubscribed", id="s1", dropped=5)
    assert await leaving == 5
    assert [batch async for batch in first] == []
    await peer.events(9, 4)
    assert len(await anext(second)) == 4
    assert await first.unsubscribe() == 0


async def test_a_block_ends_its_subscription(server: Server, stream: Stream) -> None:
    peer = await server.peer()

    async def block() -> None:
        async with stream.subscribe(["tick"]) as subscription:
            assert subscription.cursor == Cursor({"tick": {0: 7}}, LOG)

    task = asyncio.create_task(block())
    await peer.begun(7)
    assert (await peer.heard())["op"] == "unsubscribe"
    await peer.say("unsubscribed", id="s1", dropped=0)
    await task


async def test_terms_change_while_events_wait(server: Server) -> None:
    async with Stream(server.url, api_key=KEY, buffer_bytes=1) as stream:
        subscription = stream.subscribe(["tick"])
        peer = await server.peer()
        await peer.begun(0)
        for first in range(50):
            await peer.events(first, 1)
        assert len(await anext(subscription)) == 1
        updating = asyncio.create_task(
            subscription.update(
                topics=["tick", "bundle"], filter=["simulated == true"], max_rate=None
            )
        )
        assert await peer.heard() == {
            "op": "update",
            "id": "s1",
            "topics": ["tick", "bundle"],
            "filter": ["simulated == true"],
            "max_rate": None,
        }
        await peer.say(
            "updated",
            id="s1",
            topics=["bundle", "tick"],
            log=LOG,
            cursor={"tick": {"0": 60}, "bundle": {"0": 3}},
        )
        await updating  # although 49 batches were not taken
        for _ in range(49):
            await anext(subscription)
        assert subscription.cursor == Cursor({"tick": {0: 50}}, LOG)
        await peer.events(50, 1)
        assert (await anext(subscription)).cursor == Cursor(
            {"tick": {0: 51}, "bundle": {0: 3}}, LOG
        )
        peer.drop()
        request = await (await server.peer()).heard()
        assert (request["topics"], request["filter"]) == (["bundle", "tick"], ["simulated == true"])
        assert request["from"] == {"cursor": {"tick": {"0": 51}, "bundle": {"0": 3}}, "log": LOG}


async def test_a_refused_change_leaves_the_terms(server: Server, stream: Stream) -> None:
    subscription = stream.subscribe(["tick"], filter=["bid_price > 1"])
    peer = await server.peer()
    await peer.begun(0)
    updating = asyncio.create_task(subscription.update(filter=["nonsense"]))
    await peer.heard()
    await peer.say(
        "error", id="s1", code="bad_filter", detail="no field 'nonsense'", field="filter"
    )
    with pytest.raises(RefusedError, match="no field 'nonsense'") as caught:
        await updating
    assert (caught.value.reason, caught.value.field) == ("bad_filter", "filter")
    await peer.events(0, 1)
    assert len(await anext(subscription)) == 1
    peer.drop()
    assert (await (await server.peer()).heard())["filter"] == ["bid_price > 1"]


async def test_a_change_outlives_its_connection(server: Server, stream: Stream) -> None:
    subscription = stream.subscribe(["tick"])
    peer = await server.peer()
    await peer.begun(3)
    updating = asyncio.create_task(subscription.update(topics=["tick", "bundle"]))
    await peer.heard()
    peer.drop()
    peer = await server.peer()
    request = await peer.begun(3, start="resumed")
    # The cursor names no partition of a bundle: with it they would start at their earliest event.
    assert request["topics"] == ["tick"]
    assert await peer.heard() == {"op": "update", "id": "s1", "topics": ["tick", "bundle"]}
    await peer.say(
        "updated",
        id="s1",
        topics=["tick", "bundle"],
        log=LOG,
        cursor={"tick": {"0": 3}, "bundle": {"0": 8}},
    )
    await updating


async def test_a_refused_subscription_raises_and_the_others_go_on(
    server: Server, stream: Stream
) -> None:
    wrong, good = stream.subscribe(["tikc"]), stream.subscribe(["tick"])
    peer = await server.peer()
    await peer.heard()
    await peer.say(
        "error", id="s1", code="unknown_topic", detail="no event type 'tikc'", field="topics"
    )
    await peer.begun()
    await peer.events(0, 1)
    assert len(await anext(good)) == 1
    for _ in range(2):
        with pytest.raises(RefusedError, match="tikc"):
            await anext(wrong)
    with pytest.raises(RefusedError, match="tikc"):
        await wrong.update(max_rate=1)


async def test_a_replay_that_must_wait_is_asked_for_again(server: Server, stream: Stream) -> None:
    subscription = stream.subscribe(["tick"], from_="earliest")
    peer = await server.peer()
    first = await peer.heard()
    await peer.say(
        "error", id="s1", code="too_many_replays", detail="others replay", retry_after_s=0.01
    )
    assert await peer.begun() == first
    await subscription.started()


async def test_gaps_and_resets_are_told(server: Server, stream: Stream) -> None:
    subscription = stream.subscribe(["tick"], from_=Cursor({"tick": {0: 4, 1: 10}}, LOG))
    peer = await server.peer()
    request = await peer.heard()
    await peer.say(
        "subscribed",
        id="s1",
        topics=request["topics"],
        start="gap",
        gaps={"tick": {"0": {"from": 4, "to": 9}, "1": {"from": 10, "to": 12}}},
        log=LOG,
        cursor={"tick": {"0": 9, "1": 12}},
    )
    batch = await anext(subscription)
    assert batch.gaps == (Gap("tick", 0, 4, 9), Gap("tick", 1, 10, 12))
    assert (batch.lost, len(batch), list(batch), bool(batch)) == (7, 0, [], True)
    assert batch.cursor == Cursor({"tick": {0: 9, 1: 12}}, LOG)
    peer.drop()
    peer = await server.peer()
    request = await peer.heard()
    assert request["from"] == {
        "cursor": {"tick": {"0": 9, "1": 12}},
        "log": LOG,
    }  # the dead cursor is not asked for again
    await peer.say(
        "subscribed",
        id="s1",
        topics=["tick"],
        start="reset",
        log="log-2",
        cursor={"tick": {"0": 0}},
    )
    batch = await anext(subscription)
    assert (batch.reset, batch.gaps, batch.lost, batch.cursor) == (
        True,
        (),
        0,
        Cursor({"tick": {0: 0}}, "log-2"),
    )
    peer.drop()
    request = await (await server.peer()).heard()
    assert request["from"] == {"cursor": {"tick": {"0": 0}}, "log": "log-2"}


async def test_an_event_that_cannot_be_decoded_says_where_it_is(
    server: Server, stream: Stream
) -> None:
    subscription = stream.subscribe(["tick", "newer"])
    peer = await server.peer()
    await peer.begun(topics=["tick", "newer"])
    await peer.frame(
        [
            Run(
                "mev.tick.v1",
                2,
                [7, 8, 9],
                [tick(7).SerializeToString(), b"\xff", tick(9).SerializeToString()],
            )
        ]
    )
    await peer.frame([Run("mev.newer.v1", 0, [1], [b"anything"])])
    batch, newer = await anext(subscription), await anext(subscription)
    events = iter(batch)
    assert next(events) == tick(7)
    with pytest.raises(UndecodableEventError, match="tick, partition 2, offset 8"):
        next(events)
    assert [record.offset for record in batch.records()] == [7, 8, 9]
    assert list(newer.records()) == [Record("newer", 0, 1, b"anything")]
    with pytest.raises(UndecodableEventError, match="newer than this package"):
        list(newer)


async def test_what_waits_can_be_taken_after_the_end(server: Server, stream: Stream) -> None:
    first, second = stream.subscribe(["tick"]), stream.subscribe(["tick"])
    peer = await server.peer()
    await peer.begun()
    await peer.begun()
    await peer.events(0, 3, subscription="s1")
    await peer.events(0, 1, subscription="s2")
    await anext(second)
    await stream.close()
    assert [len(batch) async for batch in first] == [3]
    assert [batch async for batch in second] == []
    with pytest.raises(StreamError, match="not open"):
        await anext(stream.subscribe(["tick"]))


def test_a_cursor_is_text_and_back() -> None:
    cursor = Cursor({"tick": {0: 5, 11: 7}, "bundle": {}}, "log")
    assert json.loads(str(cursor)) == {
        "cursor": {"tick": {"0": 5, "11": 7}, "bundle": {}},
        "log": "log",
    }
    assert Cursor.parse(str(cursor)) == cursor
    assert Cursor.parse('{"tick":{"0":5}}') == Cursor({"tick": {0: 5}})
    earlier, later = Cursor({"tick": {0: 5, 1: 9}}, "a"), Cursor({"tick": {0: 6, 1: 8, 2: 1}}, "a")
    assert earlier.merged(later) == Cursor({"tick": {0: 6, 1: 9, 2: 1}}, "a")
    assert earlier.merged(Cursor({"tick": {0: 1}}, "b")) == Cursor({"tick": {0: 1}}, "b")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        '"x"',
        '{"tick": 5}',
        '{"tick": {"0": -1}}',
        '{"tick": {"x": 1}}',
        '{"cursor": {}, "log": 5}',
        '{"a":{"0":true}}',
    ],
)
def test_no_cursor(text: str) -> None:
    with pytest.raises(Exception, match="not a cursor"):
        Cursor.parse(text)
