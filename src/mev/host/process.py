"""Load of this process: processor, memory, open files, event loop and garbage collection."""

import asyncio
import gc
import math
import resource
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
from prometheus_client import REGISTRY, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from mev.core.tasks import background
from mev.host.window import Buckets, Latency, PlainHistogram, SampleWindow, latency, rate

_WINDOW_S = 60.0
_PERIOD_S = 1.0
_LAG_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_PAUSE_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFiles:
    """File descriptors in use, and the soft limit."""

    count: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLoad:
    """Load of a process; `cores`, `event_loop_lag` and `gc_pauses` cover the latest `window_s`.

    `cores` is processor time per second. `event_loop_lag` is how late the event loop ran a timer,
    measured each second. `gc_pauses` are the collections by generation.
    """

    pid: int
    window_s: float
    cores: float
    resident_bytes: int
    threads: int
    open_files: OpenFiles
    event_loop_lag: Latency
    gc_pauses: dict[str, Latency]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counters:
    cpu_s: float
    lag: Buckets
    pauses: Mapping[str, Buckets]


class ProcessMonitor(Collector):
    """Measures this process over about the latest minute, or since it was started.

    Exports the event loop's lag and the pauses of the garbage collector to Prometheus.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._lag = PlainHistogram(_LAG_BOUNDS_S)
        self._pauses = {
            str(generation): PlainHistogram(_PAUSE_BOUNDS_S)
            for generation, _ in enumerate(gc.get_stats())
        }
        self._collection_began = 0.0
        self._window = SampleWindow(self._counters(), length_s=_WINDOW_S)

    async def report(self) -> ProcessLoad:
        """Return the current figures."""
        resident, threads, files = await asyncio.to_thread(self._read)
        current = self._counters()
        window_s, earlier = self._window.add(current)
        return ProcessLoad(
            pid=self._process.pid,
            window_s=round(window_s, 3),
            cores=rate(current.cpu_s - earlier.cpu_s, window_s),
            resident_bytes=resident,
            threads=threads,
            open_files=OpenFiles(count=files, limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
            event_loop_lag=latency(_since(current.lag, earlier.lag), window_s),
            gc_pauses={
                generation: latency(_since(now, earlier.pauses[generation]), window_s)
                for generation, now in current.pauses.items()
            },
        )

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        lag = HistogramMetricFamily(
            "mev_event_loop_lag_seconds", "How late the event loop ran a timer, each second."
        )
        lag.add_metric([], *_exported(self._lag))
        yield lag
        pauses = HistogramMetricFamily(
            "mev_gc_pause_seconds", "Time of a garbage collection.", labels=["generation"]
        )
        for generation, histogram in self._pauses.items():
            pauses.add_metric([generation], *_exported(histogram))
        yield pauses

    async def watch_event_loop(self, period_s: float) -> None:
        """Measure each `period_s` how late the event loop runs a timer, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + period_s
            await asyncio.sleep(period_s)
            self._lag.observe(max(0.0, loop.time() - due))

    def on_collection(self, phase: str, info: Mapping[str, int]) -> None:
        """Time a garbage collection; a callback of :mod:`gc`."""
        if phase == "start":
            self._collection_began = time.perf_counter()
        else:
            pause_s = time.perf_counter() - self._collection_began
            self._pauses[str(info["generation"])].observe(pause_s)

    def _read(self) -> tuple[int, int, int]:
        with self._process.oneshot():
            return (
                self._process.memory_info().rss,
                self._process.num_threads(),
                self._process.num_fds(),
            )

    def _counters(self) -> _Counters:
        return _Counters(
            cpu_s=time.process_time(),
            lag=self._lag.buckets(),
            pauses={generation: each.buckets() for generation, each in self._pauses.items()},
        )


@asynccontextmanager
async def measured_process(period_s: float = _PERIOD_S) -> AsyncIterator[ProcessMonitor]:
    """Measure the event loop and the garbage collector of this process while the context lasts."""
    monitor = ProcessMonitor()
    REGISTRY.register(monitor)
    gc.callbacks.append(monitor.on_collection)
    try:
        async with background(monitor.watch_event_loop(period_s)):
            yield monitor
    finally:
        gc.callbacks.remove(monitor.on_collection)
        REGISTRY.unregister(monitor)


def _exported(histogram: PlainHistogram) -> tuple[list[tuple[str, float]], float]:
    buckets = histogram.buckets()
    bounds = [
        ("+Inf" if math.isinf(bound) else str(bound), count) for bound, count in buckets.items()
    ]
    return bounds, histogram.total_s


def _since(now: Buckets, earlier: Buckets) -> Buckets:
    return {bound: count - earlier[bound] for bound, count in now.items()}
