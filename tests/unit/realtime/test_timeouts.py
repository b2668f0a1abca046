"""Tests of timeouts of clients, with a manual clock."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from mev.realtime.batch import Encoding
from mev.realtime.client import Client
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.link import CloseCode
from mev.realtime.metrics import Loss
from mev.realtime.options import DeliveryMode
from mev.realtime.timeouts import TimeoutWatch
from mev.wire import resume
from mev.wire.registry import EVENT_TYPES
from tests.unit.realtime.events import options, ticks
from tests.unit.realtime.links import MemoryLink

LIMITS = HubLimits(
    auth_timeout_s=5,
    stall_timeout_s=30,
    ping_interval_s=20,
    close_timeout_s=5,
    soft_buffer_bytes=100,
)


class Clock:
    """A watch over one client, ticked by hand once a second."""

    def __init__(
        self,
        link: MemoryLink,
        *,
        principal: str | None = "test",
        encoding: Encoding = Encoding.PROTOBUF,
    ) -> None:
        self.hub = Hub(EVENT_TYPES, LIMITS)
        self.link = link
        self.client: Client = self.hub.admit(link, encoding, "test")
        self.client.principal = principal
        self._watch = TimeoutWatch(LIMITS, {self.client.id: self.client}, self.hub.disconnect)
        self.now = 0.0
        self._watch.tick(self.now)

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self._watch.tick(self.now)


@contextmanager
def moved_forward(seconds: float) -> Iterator[None]:
    """Move the running loop's time forward."""
    loop = asyncio.get_running_loop()
    now = loop.time

    def later() -> float:
        return now() + seconds

    with mock.patch.object(loop, "time", later):
        yield


@pytest.fixture
async def link() -> MemoryLink:
    return MemoryLink()


async def test_a_client_that_says_who_it_is_stays(link: MemoryLink) -> None:
    clock = Clock(link)
    clock.run(15)
    assert (link.closed, link.aborted) == (None, False)


async def test_a_client_that_does_not_is_closed(link: MemoryLink) -> None:
    clock = Clock(link, principal=None)
    clock.run(4)
    before = link.closed
    clock.run(1)
    assert (before, link.closed) == (None, (CloseCode.UNAUTHORIZED, "no auth message came in time"))


async def test_silence_brings_pings_then_the_end(link: MemoryLink) -> None:
    clock = Clock(link)
    clock.run(59)
    before = link.closed
    clock.run(1)
    assert (link.pings, before) == (2, None)
    assert link.closed == (CloseCode.GOING_AWAY, "no answer to pings")


async def test_a_client_that_answers_pings_stays(link: MemoryLink) -> None:
    clock = Clock(link)
    for _ in range(10):
        clock.run(20)
        clock.client.heard += 1
    assert (link.pings, link.closed) == (10, None)


async def test_a_client_that_takes_nothing_is_aborted(link: MemoryLink) -> None:
    link.reading = False
    clock = Clock(link)
    clock.client.answer(bytes(48))
    clock.run(29)
    before = link.aborted
    clock.run(1)
    assert (before, link.aborted_for) == (
        False,
        (CloseCode.GOING_AWAY, "the client took nothing for 30 s"),
    )


async def test_a_slow_client_that_takes_a_little_stays(link: MemoryLink) -> None:
    link.reading = False
    clock = Clock(link)
    clock.client.answer(bytes(98))
    for _ in range(10):
        clock.run(29)
        link.read(1)
    link.read(100)
    clock.run(19)
    assert (link.aborted, link.closed, link.pings) == (False, None, 0)


async def test_a_close_that_is_not_answered_ends_in_an_abort(link: MemoryLink) -> None:
    clock = Clock(link)
    clock.hub.disconnect(clock.client, CloseCode.GOING_AWAY, "")
    clock.run(5)
    before = link.aborted
    clock.run(1)
    assert (before, link.aborted) == (False, True)


async def test_client_that_reads_again_after_a_close_has_time_to_answer_it(
    link: MemoryLink,
) -> None:
    link.reading = False
    clock = Clock(link)
    clock.client.answer(bytes(98))
    clock.hub.disconnect(clock.client, CloseCode.TRY_AGAIN_LATER, "too slow")
    clock.run(20)
    link.read(100)
    clock.run(4)
    before = link.aborted
    clock.run(1)
    assert (before, link.aborted) == (False, True)


async def test_stop_of_the_server_does_not_wait_for_a_client_that_reads_nothing(
    link: MemoryLink,
) -> None:
    link.reading = False
    clock = Clock(link)
    clock.client.answer(bytes(98))
    clock.hub.disconnect_all()
    clock.run(5)
    before = link.aborted
    clock.run(1)
    assert (before, link.aborted) == (False, True)


async def test_close_of_client_that_reads_nothing_ends_in_an_abort(link: MemoryLink) -> None:
    link.reading = False
    clock = Clock(link)
    clock.client.answer(bytes(98))
    clock.hub.disconnect(clock.client, CloseCode.TRY_AGAIN_LATER, "too slow")
    clock.run(30)
    before = link.aborted
    clock.run(1)
    assert (before, link.aborted) == (False, True)


async def test_losses_are_told_when_nothing_follows_them(link: MemoryLink) -> None:
    clock = Clock(link)
    subscription = clock.hub.subscribe(clock.client, "a", options("tick"))
    subscription.lose(7, Loss.GAP)
    clock.run(2)
    (message,) = link.messages()
    assert (message.frame.dropped, list(message.frame.slices)) == (7, [])


async def test_a_client_is_told_how_far_its_filter_has_looked(link: MemoryLink) -> None:
    clock = Clock(link)
    clock.hub.subscribe(clock.client, "rare", options("tick", conditions=["bid_price > 1"]))
    clock.run(1)
    assert link.messages() == []  # the answer to the subscription has its cursor
    clock.hub.push(ticks(range(7), partition=2))
    with moved_forward(LIMITS.position_s):
        clock.run(1)
        (message,) = link.messages()
        (part,) = message.frame.slices
        assert (part.partition, part.first_offset, len(part.events)) == (2, 7, 0)
        clock.run(1)
    assert len(link.messages()) == 1
    hub = clock.hub
    hub.unsubscribe(clock.client, "rare")
    hub.subscribe(clock.client, "all", options("tick"))
    clock.run(1)
    assert len(link.messages()) == 1


async def test_webtransport_client_is_told_how_far_its_filter_has_looked() -> None:
    link = MemoryLink(transport="webtransport", datagram_bytes=1200)
    clock = Clock(link)
    rare = options("tick", conditions=['market_id == "rare"'])
    clock.hub.subscribe(clock.client, "rare", rare)
    clock.hub.subscribe(
        clock.client,
        "datagrams",
        options("tick", conditions=["bid_price > 1"], delivery=DeliveryMode.DATAGRAM),
    )
    clock.hub.push(ticks(range(3), partition=2, market="rare"))
    for group in clock.hub._groups:
        group.flush()
    clock.run(1)
    frame, progress = link.messages()
    assert len(frame.frame.slices[0].events) == progress.json["sequence"] == 3
    link.received.clear()
    clock.hub.push(ticks(range(3, 7), partition=2))
    with moved_forward(LIMITS.position_s):
        clock.run(1)
        (message,) = link.messages()
        (part,) = message.frame.slices
        assert (message.frame.subscription, message.frame.sequence) == ("rare", 3)
        assert (part.partition, part.first_offset, len(part.events)) == (2, 7, 0)
        assert resume.decode(message.frame.resume, EVENT_TYPES)[1] == {("mev.tick.v1", 2): 7}
        clock.run(1)
    assert len(link.messages()) == 1


async def test_json_client_with_selective_filter_gets_cursor_without_events(
    link: MemoryLink,
) -> None:
    clock = Clock(link, encoding=Encoding.JSON)
    clock.hub.subscribe(clock.client, "rare", options("tick", conditions=["bid_price > 1"]))
    clock.run(1)
    assert link.messages() == []  # the answer to the subscription has its cursor
    clock.hub.push(ticks(range(7), partition=2))
    with moved_forward(LIMITS.position_s):
        clock.run(1)
        (message,) = link.messages()
        assert message.json["events"] == []
        assert message.json["cursor"] == {"tick": {"2": 7}}
        clock.run(1)
    assert len(link.messages()) == 1


async def test_the_timer_runs_while_there_are_clients(link: MemoryLink) -> None:
    hub = Hub(EVENT_TYPES, HubLimits(tick_s=0.001, auth_timeout_s=0.001))
    client = hub.admit(link, Encoding.JSON, "test")
    while link.closed is None:  # noqa: ASYNC110 (the timer under test sets it)
        await asyncio.sleep(0.001)
    hub.release(client)
    assert hub._watch._timer is None


async def test_what_the_transport_does_not_announce_is_drained_by_the_tick(
    link: MemoryLink,
) -> None:
    link.reading = False
    clock = Clock(link)
    clock.hub.subscribe(clock.client, "a", options("tick"))
    (group,) = clock.hub._groups
    for offset in range(3):
        clock.hub.push(ticks([offset], market="m" * 90))
        group.flush()
    link.read(1000)
    clock.run(1)
    link.read(1000)
    assert len(link.messages()) == 2
