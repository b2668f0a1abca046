"""Tests of the policies for slow clients, with exact counts."""

from itertools import pairwise

import pytest

from mev.auth.model import MASTER
from mev.realtime.access import PrincipalQuota, StreamAccess
from mev.realtime.batch import EncodedFrame, Encoding
from mev.realtime.client import Client
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.link import CloseCode
from mev.realtime.options import OnSlow
from mev.wire.frames import Run, encode_frame, offsets_of
from mev.wire.registry import EVENT_TYPES
from mev.wire.resume import encode
from tests.unit.realtime.clock import Clock
from tests.unit.realtime.events import batch, options, tick, ticks
from tests.unit.realtime.links import TEXT, MemoryLink, Sent

FIRST = 1000  # from here to 16383 every tick is of one size
TOKEN = encode("log", {("mev.tick.v1", 0): FIRST + 2}, ["mev.tick.v1"])
FRAME_BYTES = len(
    encode_frame([Run("mev.tick.v1", 0, [FIRST, FIRST + 1], [tick(FIRST)] * 2)], 1, TOKEN)
)


class Recorder(MemoryLink):
    """Keeps the frames themselves, not only their bytes."""

    def __init__(self, *, reading: bool = True) -> None:
        super().__init__(reading=reading)
        self.frames: list[EncodedFrame] = []

    def send_frame(self, frame: EncodedFrame, tail: bytes, *, stale: bool) -> None:
        self.frames.append(frame)
        super().send_frame(frame, tail, stale=stale)


class Nobody:
    """Knows no credential: the tests say themselves who is there."""

    known = identify = renew = count_stranger = None


def make_hub(**limits: float) -> Hub:
    usual: dict[str, float] = {
        "batch_max_size": 2,
        "soft_buffer_bytes": 0,
        "batch_window_ms": 1,
        "stall_timeout_s": 1e9,
        "ping_interval_s": 1e9,
    }
    return Hub(EVENT_TYPES, HubLimits(**{**usual, **limits}), log="log")  # type: ignore[arg-type]


def connect(
    hub: Hub, encoding: Encoding = Encoding.PROTOBUF, *, reading: bool = False
) -> tuple[Client, Recorder]:
    link = Recorder(reading=reading)
    client = hub.admit(link, encoding, "test")
    client.principal = "test"
    return client, link


def push(hub: Hub, number: int, *, partition: int = 0, market: str = "m") -> None:
    first = max(FIRST, hub.positions.get(("mev.tick.v1", partition), FIRST))
    hub.push(ticks(range(first, first + number), partition, market))


def catch_up(client: Client, link: MemoryLink) -> None:
    """Let a client read everything that it can."""
    link.reading = True
    link.read(len(link.waiting))
    client.drain()


def offsets(messages: list[Sent]) -> list[int]:
    """Return the offsets of all events, less where they begin."""
    found = []
    for message in messages:
        if message.opcode == TEXT:
            events = message.json.get("events", [])
            assert isinstance(events, list)
            found += [event["timestamp_ns"] - FIRST for event in events]
        else:
            found += [
                offset - FIRST for part in message.frame.slices for offset in offsets_of(part)
            ]
    return found


def told(messages: list[Sent]) -> int:
    """Return the sum of all losses that were reported."""
    values = [
        message.json.get("dropped", 0) if message.opcode == TEXT else message.frame.dropped
        for message in messages
    ]
    return sum(value for value in values if isinstance(value, int))


def farewell(link: MemoryLink) -> dict[str, object]:
    """Return the `closing` message, which must be the last one."""
    catch = link.messages()[-1]
    assert catch.opcode == TEXT
    assert catch.json["op"] == "closing"
    return catch.json


def used(hub: Hub) -> int:
    return hub._budget.used_bytes


async def test_drop_oldest_keeps_the_newest_that_fit(clock: Clock) -> None:
    hub = make_hub(queue_bytes=3 * FRAME_BYTES)
    client, link = connect(hub)
    hub.subscribe(client, "a", options("tick"))
    push(hub, 40)
    assert (client.dropped, client.queued_bytes(), used(hub)) == (
        32,
        3 * FRAME_BYTES,
        3 * FRAME_BYTES,
    )
    catch_up(client, link)
    assert offsets(link.messages()) == [0, 1, 34, 35, 36, 37, 38, 39]
    assert [(m.frame.dropped, m.frame.queued) for m in link.messages()] == [
        (0, 0),
        (32, 4),
        (0, 2),
        (0, 0),
    ]
    assert (client.sent, client.dropped, used(hub)) == (8, 32, 0)
    hub.close()


@pytest.mark.parametrize("encoding", Encoding)
async def test_conflate_keeps_the_newest_of_each_key_in_the_order_of_offsets(
    encoding: Encoding, clock: Clock
) -> None:
    hub = make_hub()
    client, link = connect(hub, encoding)
    hub.subscribe(client, "a", options("tick", on_slow=OnSlow.CONFLATE))
    push(hub, 2)
    for market in ("x", "y", "x", "z", "y"):
        push(hub, 2, market=market)
    # Sent: 0, 1. Of x there are 2, 3, 6, 7; of y 4, 5, 10, 11; of z 8, 9.
    assert client.dropped == 7
    assert used(hub) == client.queued_bytes() > 0
    catch_up(client, link)
    assert offsets(link.messages()) == [0, 1, 7, 9, 11]
    assert (told(link.messages()), client.sent, used(hub)) == (7, 5, 0)
    push(hub, 2, market="x")
    assert offsets(link.messages())[-2:] == [12, 13]
    hub.close()


async def test_keys_of_different_event_types_are_different_keys(clock: Clock) -> None:
    hub = make_hub()
    client, link = connect(hub)
    hub.subscribe(client, "a", options("tick", "bundle", on_slow=OnSlow.CONFLATE))
    push(hub, 2)
    hub.push(batch("tick", 1, [7], [tick(7)], [b"same"]))
    hub.push(batch("bundle", 1, [7], [b""], [b"same"]))
    await clock.forward(1)
    catch_up(client, link)
    assert [len(part.events) for message in link.messages() for part in message.frame.slices] == [
        2,
        1,
        1,
    ]
    assert client.dropped == 0
    hub.close()


@pytest.mark.parametrize("encoding", Encoding)
async def test_lossless_closes_with_the_first_event_that_was_not_sent(
    encoding: Encoding, clock: Clock
) -> None:
    hub = make_hub(queue_bytes=3 * FRAME_BYTES)
    client, link = connect(hub, encoding)
    hub.subscribe(client, "a", options("tick", on_slow=OnSlow.LOSSLESS))
    push(hub, 3, partition=1)
    push(hub, 30)
    push(hub, 30)
    await clock.forward()
    link.read(len(link.waiting))
    sent = offsets(link.messages())
    message = farewell(link)
    # The third event of partition 1 waited for its batch to fill.
    assert sent == [0, 1]
    assert (message["code"], message["log"], message["retry_after_s"]) == ("too_slow", "log", 1)
    assert message["cursors"] == {"a": {"tick": {"0": FIRST, "1": FIRST + 2}}}
    assert link.closed is not None
    assert link.closed[0] == CloseCode.TRY_AGAIN_LATER
    assert (client.sent, client.dropped, used(hub)) == (2, 0, 0)
    hub.close()


async def test_the_cursor_of_a_closed_client_is_exact_for_all_its_subscriptions(
    clock: Clock,
) -> None:
    hub = make_hub(batch_max_size=4, queue_bytes=400)
    client, link = connect(hub)
    hub.subscribe(client, "same", options("tick", on_slow=OnSlow.LOSSLESS))
    hub.subscribe(client, "twin", options("tick", on_slow=OnSlow.LOSSLESS))
    hub.subscribe(
        client, "other", options("tick", conditions=["timestamp_ns >= 0"], on_slow=OnSlow.LOSSLESS)
    )
    hub.subscribe(
        client, "none", options("tick", conditions=["timestamp_ns < 0"], on_slow=OnSlow.LOSSLESS)
    )
    push(hub, 4)
    push(hub, 4)
    push(hub, 100)
    await clock.forward()
    link.read(len(link.waiting))
    cursors = farewell(link)["cursors"]
    received: dict[str, int] = {}
    for message in link.messages():
        if message.opcode != TEXT:
            received[message.frame.subscription] = received.get(
                message.frame.subscription, FIRST
            ) + len(offsets([message]))
    assert received["same"] == FIRST + 4
    expected = {
        name: {"tick": {"0": received.get(name, FIRST)}} for name in ("same", "twin", "other")
    }
    assert cursors == {**expected, "none": {"tick": {"0": FIRST + 108}}}
    hub.close()


async def test_losses_are_told_before_a_connection_is_closed(clock: Clock) -> None:
    hub = make_hub(queue_bytes=3 * FRAME_BYTES)
    client, link = connect(hub)
    hub.subscribe(client, "a", options("tick"))
    push(hub, 40)
    hub.close()
    link.read(len(link.waiting))
    message = farewell(link)
    assert (offsets(link.messages()), told(link.messages())) == ([0, 1], 32)
    assert message["cursors"] == {"a": {"tick": {"0": FIRST + 34}}}


async def test_max_rate_drops_the_oldest_of_what_is_too_much(clock: Clock) -> None:
    hub = make_hub(batch_max_size=100)
    client, link = connect(hub, reading=True)
    hub.subscribe(client, "a", options("tick", max_rate=10))
    push(hub, 25)
    await clock.forward(0.5)
    push(hub, 25)
    await clock.forward(0.5)
    assert offsets(link.messages()) == [*range(15, 25), *range(45, 50)]
    await clock.forward(10)
    push(hub, 5)
    await clock.forward(0.5)
    assert offsets(link.messages())[15:] == [*range(50, 55)]
    assert told(link.messages()) == client.dropped == 35
    hub.close()


async def test_max_rate_lets_wait_what_may_not_be_lost(clock: Clock) -> None:
    hub = make_hub(batch_max_size=5)
    client, link = connect(hub, reading=True)
    hub.subscribe(client, "a", options("tick", max_rate=10, on_slow=OnSlow.LOSSLESS))
    push(hub, 25)
    seen = []
    for _ in range(4):
        seen.append(len(offsets(link.messages())))
        await clock.forward(1)
    assert seen == [10, 20, 25, 25]
    assert offsets(link.messages()) == [*range(25)]
    assert (client.dropped, used(hub)) == (0, 0)
    hub.close()


async def test_max_rate_conflates_what_is_too_much(clock: Clock) -> None:
    hub = make_hub(batch_max_size=5)
    client, link = connect(hub, reading=True)
    hub.subscribe(client, "a", options("tick", max_rate=10, on_slow=OnSlow.CONFLATE))
    for market in ("x", "y", "x", "y", "z"):
        push(hub, 5, market=market)
    assert offsets(link.messages()) == [*range(10)]
    await clock.forward(1)
    assert offsets(link.messages())[10:] == [14, 19, 24]
    assert told(link.messages()) == client.dropped == 12
    hub.close()


async def test_beyond_the_budget_who_holds_most_gives_up_what_it_holds(clock: Clock) -> None:
    hub = make_hub(budget_bytes=20 * FRAME_BYTES)
    (most, most_link), (less, less_link), (reader, reader_link) = (
        connect(hub),
        connect(hub),
        connect(hub, reading=True),
    )
    for client, conditions in (
        (most, []),
        (less, ["timestamp_ns >= 1060"]),
        (reader, ["timestamp_ns >= 0"]),
    ):
        hub.subscribe(client, "a", options("tick", conditions=conditions))
    push(hub, 62)
    await clock.forward()
    assert (most.dropped, most.queued_bytes()) == (60, 0)
    push(hub, 10)
    await clock.forward()
    for client, link in ((most, most_link), (less, less_link)):
        catch_up(client, link)
        client.report()
    assert offsets(most_link.messages()) == [0, 1, *range(62, 72)]
    assert told(most_link.messages()) == 60
    assert offsets(less_link.messages()) == [*range(60, 72)]
    assert offsets(reader_link.messages()) == [*range(72)]
    assert (less.dropped, reader.dropped, used(hub)) == (0, 0, 0)
    hub.close()


async def test_beyond_the_budget_a_lossless_client_is_closed_and_nobody_else_suffers(
    clock: Clock,
) -> None:
    hub = make_hub(budget_bytes=20 * FRAME_BYTES)
    (most, most_link), (less, less_link) = connect(hub), connect(hub)
    hub.subscribe(most, "a", options("tick", on_slow=OnSlow.LOSSLESS))
    hub.subscribe(less, "a", options("tick", conditions=["timestamp_ns >= 1060"]))
    push(hub, 62)
    await clock.forward()
    most_link.read(len(most_link.waiting))
    assert farewell(most_link)["cursors"] == {"a": {"tick": {"0": FIRST + 2}}}
    push(hub, 10)
    await clock.forward()
    catch_up(less, less_link)
    assert offsets(less_link.messages()) == [*range(60, 72)]
    assert (less.dropped, used(hub)) == (0, 0)
    hub.close()


async def test_a_frame_that_waits_for_many_counts_once_and_is_never_copied(clock: Clock) -> None:
    hub = make_hub()
    slow = [connect(hub) for _ in range(5)]
    for client, _ in slow:
        hub.subscribe(client, "a", options("tick"))
    push(hub, 20)
    assert used(hub) == 9 * FRAME_BYTES
    assert sum(client.queued_bytes() for client, _ in slow) == 5 * 9 * FRAME_BYTES
    left = used(hub)
    for client, link in slow:
        assert used(hub) == left
        catch_up(client, link)
    assert used(hub) == 0
    first = slow[0][1].frames
    assert len(first) == 10
    for _, link in slow:
        assert all(mine is theirs for mine, theirs in zip(link.frames, first, strict=True))
        assert offsets(link.messages()) == [*range(20)]
    hub.close()


async def test_a_principal_is_sent_so_many_bytes_over_all_its_connections(clock: Clock) -> None:
    hub = make_hub()
    quota = PrincipalQuota(bytes_per_s=10 * FRAME_BYTES)
    guard = StreamAccess(hub, Nobody(), quota=quota)  # type: ignore[arg-type]
    mine = [connect(hub, reading=True) for _ in range(2)]
    for client, _ in mine:
        guard.register(client, MASTER)
        hub.subscribe(client, "a", options("tick", on_slow=OnSlow.LOSSLESS))
    free, free_link = connect(hub, reading=True)
    hub.subscribe(free, "a", options("tick"))
    push(hub, 60)
    assert offsets(free_link.messages()) == [*range(60)]
    sent = []
    for _ in range(12):
        sent.append(sum(len(link.frames) for _, link in mine))
        await clock.forward(1)
    # What is told of the waiting is paid for as well, hence a little less than ten frames a second.
    assert sent[0] == 10
    assert all(0 < after - before <= 11 for before, after in pairwise(sent) if before < 60)
    assert sent[-1] == 60
    for client, link in mine:
        assert offsets(link.messages()) == [*range(60)]
        guard.unregister(client)
    assert used(hub) == 0
    hub.close()


@pytest.mark.parametrize("policy", OnSlow)
@pytest.mark.parametrize("end", ["drained", "unsubscribed", "released", "disconnected", "closed"])
async def test_nothing_is_held_for_those_who_left(policy: OnSlow, end: str, clock: Clock) -> None:
    hub = make_hub()
    client, link = connect(hub)
    hub.subscribe(client, "a", options("tick", on_slow=policy))
    push(hub, 20)
    push(hub, 20, market="x")
    waiting = client.subscriptions["a"].queued
    assert waiting
    assert used(hub) == client.queued_bytes() > 0
    match end:
        case "drained":
            catch_up(client, link)
            assert client.sent + client.dropped == 40
        case "unsubscribed":
            assert hub.unsubscribe(client, "a").lost == 38
        case "released":
            hub.release(client)
        case "disconnected":
            hub.disconnect(client, CloseCode.NORMAL, "")
        case _:
            hub.close()
    assert (used(hub), client.queued_bytes(), client.is_behind) == (0, 0, False)
    hub.close()


async def test_another_policy_holds_from_now_on_and_what_waits_keeps_its_place(
    clock: Clock,
) -> None:
    hub = make_hub(queue_bytes=10 * FRAME_BYTES)
    client, link = connect(hub)
    hub.subscribe(client, "a", options("tick", on_slow=OnSlow.CONFLATE))
    push(hub, 6)
    hub.update(client, "a", options("tick", on_slow=OnSlow.LOSSLESS))
    push(hub, 6)
    hub.update(client, "a", options("tick", on_slow=OnSlow.CONFLATE))
    push(hub, 6)
    assert client.dropped == 3 + 5
    catch_up(client, link)
    assert offsets(link.messages()) == [0, 1, 5, *range(6, 12), 17]
    assert (told(link.messages()), used(hub)) == (8, 0)
    hub.close()
