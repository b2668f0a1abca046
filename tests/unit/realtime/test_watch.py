"""What happens to clients because time passes; the tests say what time it is."""

import asyncio

import pytest

from mev.realtime.client import Client
from mev.realtime.hub import Hub
from mev.realtime.limits import Limits
from mev.realtime.tally import Encoding
from mev.realtime.watch import Watch
from mev.realtime.websocket import Close
from mev.wire.registry import EVENT_TYPES
from tests.unit.realtime.events import terms, ticks
from tests.unit.realtime.links import MemoryLink

LIMITS = Limits(auth_timeout_s=5, stall_timeout_s=30, ping_interval_s=20, close_timeout_s=5, soft_buffer_bytes=100)


class Clock:
    """A watch over one client, ticked by hand once a second."""

    def __init__(self, link: MemoryLink, *, principal: str | None = "test") -> None:
        self.hub = Hub(EVENT_TYPES, LIMITS)
        self.link = link
        self.client: Client = self.hub.admit(link, Encoding.PROTOBUF, "test")
        self.client.principal = principal
        self._watch = Watch(LIMITS, {self.client.id: self.client}, self.hub.dismiss)
        self.now = 0.0
        self._watch.tick(self.now)

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self._watch.tick(self.now)


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
    assert (before, link.closed) == (None, (Close.UNAUTHORIZED, "no auth message came in time"))


async def test_silence_brings_pings_then_the_end(link: MemoryLink) -> None:
    clock = Clock(link)
    clock.run(59)
    before = link.closed
    clock.run(1)
    assert (link.pings, before, link.closed) == (2, None, (Close.GOING_AWAY, "no answer to pings"))


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
    assert (before, link.aborted) == (False, True)


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
    clock.hub.dismiss(clock.client, Close.GOING_AWAY, "")
    clock.run(5)
    before = link.aborted
    clock.run(1)
    assert (before, link.aborted) == (False, True)


async def test_losses_are_told_when_nothing_follows_them(link: MemoryLink) -> None:
    clock = Clock(link)
    subscription = clock.hub.subscribe(clock.client, "a", terms("tick"))
    subscription.lost = 7
    clock.run(2)
    (message,) = link.messages()
    assert (message.frame.dropped, list(message.frame.slices)) == (7, [])


async def test_a_client_is_told_how_far_its_filter_has_looked(link: MemoryLink) -> None:
    clock = Clock(link)
    clock.hub.subscribe(clock.client, "rare", terms("tick", conditions=["bid_price > 1"]))
    clock.hub.push(ticks(range(7), partition=2))
    clock.run(1)
    (message,) = link.messages()
    (part,) = message.frame.slices
    assert (part.partition, part.first_offset, len(part.events)) == (2, 7, 0)
    clock.run(1)
    assert len(link.messages()) == 1
    hub = clock.hub
    hub.unsubscribe(clock.client, "rare")
    hub.subscribe(clock.client, "all", terms("tick"))
    clock.run(1)
    assert len(link.messages()) == 1


async def test_the_timer_runs_while_there_are_clients(link: MemoryLink) -> None:
    hub = Hub(EVENT_TYPES, Limits(tick_s=0.001, auth_timeout_s=0.001))
    client = hub.admit(link, Encoding.JSON, "test")
    while link.closed is None:  # noqa: ASYNC110 (the timer under test sets it)
        await asyncio.sleep(0.001)
    hub.release(client)
    assert hub._watch._timer is None


async def test_what_the_transport_does_not_announce_is_drained_by_the_tick(link: MemoryLink) -> None:
    link.reading = False
    clock = Clock(link)
    clock.hub.subscribe(clock.client, "a", terms("tick"))
    (group,) = clock.hub._groups.values()
    for offset in range(3):
        clock.hub.push(ticks([offset], market="m" * 90))
        group.flush()
    link.read(1000)
    clock.run(1)
    link.read(1000)
    assert len(link.messages()) == 2
