"""Latency of ticks through the hub, at 20,000 a second and one by one, against a minimal program.

At 20,000 a second both collect events for the same window, or a full frame, and write it to every
client; the minimal program writes a lone event at once. A tick carries the time at which it was
pushed; the reader, in another process, samples four in each full frame. A side's rate is 1 divided
by the 99th percentile.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from bench import sockets
from bench.children import Pipe, child
from bench.harness import Clock, Row, RowFigures, RowInput, Sides
from bench.servers import Loop, event_loop
from mev.bus.batch import PartitionBatch
from mev.realtime.limits import HubLimits
from mev.realtime.websocket import protocol
from mev.wire.frames import Run, encode_frame
from mev.wire.pb.events_pb2 import Tick
from mev.wire.registry import EVENT_TYPES

_TYPE = EVENT_TYPES["tick"]
_RATE_PER_S = 20_000
_WINDOW_MS = HubLimits().batch_window_ms
_MOST_EVENTS = HubLimits().batch_max_size
_MORE_MS = 10.0  # than the window
_TIMEOUT_S = 60

Push = Callable[[list[bytes]], None]


@dataclass(frozen=True)
class _Pace:
    """How many ticks come at once, how often in a round, and in which time."""

    events: int
    pushes: int
    period_s: float


_STEADY = _Pace(events=20, pushes=1500, period_s=20 / _RATE_PER_S)
_LONE = _Pace(events=1, pushes=60, period_s=0.04)


@contextmanager
def _open(clients: int, pace: _Pace, _: RowInput) -> Iterator[Sides]:
    with (
        event_loop() as loop,
        _bare(loop, clients, pace) as bare,
        _hub(loop, clients, pace) as ours,
    ):

        def notes(figures: RowFigures) -> list[str]:
            window = (
                f"window {_WINDOW_MS:g} ms, or {_MOST_EVENTS} events:"
                f" {_MOST_EVENTS / _RATE_PER_S * 1000:.1f} ms"
            )
            return [f"ours {ours.p50_p99(figures)}", f"bare {bare.p50_p99(figures)}", window]

        yield Sides(bare.side, ours.side, notes)


@contextmanager
def _open_beside(clients: int, _: RowInput) -> Iterator[Sides]:
    with (
        event_loop() as loop,
        _hub(loop, clients, _STEADY) as alone,
        _hub(loop, clients, _STEADY, beside_bad=True) as beside,
    ):
        yield Sides(
            alone.side,
            beside.side,
            lambda figures: [
                f"beside them {beside.p50_p99(figures)}",
                f"alone {alone.p50_p99(figures)}",
            ],
        )


class _Timed:
    """Pushes ticks, each with its time, and keeps what the reader found of each round."""

    def __init__(
        self,
        loop: Loop,
        pipe: Pipe,
        push: Push,
        frames: Callable[[], int],
        waiting: Callable[[], bool],
        pace: _Pace,
    ) -> None:
        self._loop = loop
        self._pace = pace
        self._pipe = pipe
        self._push = push
        self._frames = frames
        self._waiting = waiting
        self._rounds: list[tuple[float, float]] = []

    def side(self) -> float:
        """Run one round."""
        before = self._frames()
        self._loop.run(self._pump())
        self._pipe.send(self._frames() - before)
        if not self._pipe.poll(_TIMEOUT_S):
            raise RuntimeError("frames were lost on the way")
        cuts = statistics.quantiles(self._pipe.recv(), n=100, method="inclusive")
        self._rounds.append((cuts[49] / 1e6, cuts[98] / 1e6))
        return 1000 / self._rounds[-1][1]

    def p50_p99(self, figures: RowFigures) -> str:
        """Return the medians of the rounds that count."""
        p50, p99 = (
            statistics.median(column)
            for column in zip(*self._rounds[-len(figures.ours) :], strict=True)
        )
        return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"

    async def _pump(self) -> None:
        """Push at the given rate; a late push is made at once, with its actual time."""
        loop = asyncio.get_running_loop()
        values = [
            Tick(market_id=f"orca:{number}", last_price=number).SerializeToString()
            for number in range(self._pace.events)
        ]
        started_s, period_s = loop.time(), self._pace.period_s
        for number in range(self._pace.pushes):
            await asyncio.sleep(max(0.0, started_s + number * period_s - loop.time()))
            now = Tick(timestamp_ns=time.monotonic_ns()).SerializeToString()
            self._push([value + now for value in values])
        async with asyncio.timeout(_TIMEOUT_S):
            while self._waiting():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(period_s)


@contextmanager
def _hub(loop: Loop, clients: int, pace: _Pace, *, beside_bad: bool = False) -> Iterator[_Timed]:
    """Serve a hub as the running system does; `beside_bad`, also to clients that do not keep up."""
    pushed = 0
    with sockets.serve_hub(loop, _MOST_EVENTS) as served, ExitStack() as stack:
        if beside_bad:
            stack.enter_context(
                child(sockets.misbehave, served.port, sockets.subscribe(_TYPE.name))
            ).recv()

        def push(values: list[bytes]) -> None:
            nonlocal pushed
            offsets = list(range(pushed, pushed + len(values)))
            pushed += len(values)
            served.hub.push(PartitionBatch(_TYPE.topic, 0, offsets, [b"key"] * len(values), values))

        with child(
            sockets.read, served.port, [sockets.subscribe(_TYPE.name)] * clients, sockets.Clocked
        ) as pipe:
            pipe.recv()
            yield _Timed(
                loop,
                pipe,
                push,
                lambda: served.sent()[0],
                lambda: served.sent()[1] < pushed * clients,
                pace,
            )


class _Collector:
    """One list and one timer; without a window, what is pushed is written at once."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self.transports: list[asyncio.Transport] = []
        self.frames = 0
        self._pushed = 0
        self._values: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Return whether data is waiting to be written."""
        return bool(self._values)

    def push(self, values: list[bytes]) -> None:
        """Collect `values`."""
        self._values += values
        if len(self._values) >= _MOST_EVENTS or not self._window_s:
            self._write()
        if self._values and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._window_s, self._write)

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        values, self._values = self._values[:_MOST_EVENTS], self._values[_MOST_EVENTS:]
        payload = encode_frame(
            [Run(_TYPE.topic, 0, range(self._pushed, self._pushed + len(values)), values)],
            time.time_ns(),
        )
        self._pushed += len(values)
        frame = protocol.frame(protocol.Opcode.BINARY, payload)
        for transport in self.transports:
            transport.write(frame)
        self.frames += len(self.transports)


@contextmanager
def _bare(loop: Loop, clients: int, pace: _Pace) -> Iterator[_Timed]:
    """Serve a collector with nothing but `transport.write`."""
    collector = _Collector(_WINDOW_MS / 1000 if pace is _STEADY else 0)

    with (
        loop.listen(partial(sockets.GreetingProtocol, collector.transports)) as port,
        child(sockets.read, port, [None] * clients, sockets.Clocked) as pipe,
    ):
        pipe.recv()
        yield _Timed(
            loop, pipe, collector.push, lambda: collector.frames, lambda: collector.waiting, pace
        )


def _row(clients: int) -> Row:
    return Row(
        name=f"latency_{clients}",
        unit="1/s",
        ours=(
            f"ticks at {_RATE_PER_S:,} a second, pushed to received by {clients} WebSocket"
            f" client{'s' if clients > 1 else ''}: 1 / p99"
        ),
        baseline=(
            "the same by a list, a timer of the same window and transport.write, uvloop: 1 / p99"
        ),
        clock=Clock.WALL,
        open=partial(_open, clients, _STEADY),
        expected_ms=_WINDOW_MS + _MORE_MS,
    )


_BESIDE = Row(
    name="latency_beside_slow",
    unit="1/s",
    ours=(
        "200 clients beside one that never reads, one that reads 8 KiB a second, one that comes and"
        " goes every second: 1 / p99"
    ),
    baseline="the same hub with the 200 alone: 1 / p99",
    clock=Clock.WALL,
    open=partial(_open_beside, 200),
    expected_ratio=0.8,
)

_FIRST = Row(
    name="latency_lone",
    unit="1/s",
    ours="one tick every 40 ms, pushed to received by one WebSocket client: 1 / p99",
    baseline="the same by transport.write at once, uvloop: 1 / p99",
    clock=Clock.WALL,
    open=partial(_open, 1, _LONE),
)

ROWS = (_row(1), _row(100), _FIRST, _BESIDE)
