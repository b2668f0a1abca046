"""Latencies and rates of the latest minute, of one process and of several."""

import math

import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)

from mev.host.gather import merge_families
from mev.host.performance import PerformanceMonitor


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Process:
    """Metrics of one process."""

    def __init__(self, started_at: float = 1) -> None:
        self.registry = CollectorRegistry()
        Gauge("process_start_time_seconds", "Start.", registry=self.registry).set(started_at)
        self.http = Histogram(
            "mev_http_seconds", "Time.", ["route"], buckets=[0.1, 0.2, 0.4], registry=self.registry
        )
        self.rows = Counter("mev_sink_rows_total", "Rows.", ["topic"], registry=self.registry)

    def answer(self, *seconds: float) -> None:
        for value in seconds:
            self.http.labels("/api").observe(value)


def gathered(**processes: Process) -> list[Metric]:
    return merge_families(
        {name: generate_latest(each.registry) for name, each in processes.items()}
    )


def test_quantiles_and_rates_are_those_of_all_processes_together() -> None:
    clock, first, second = Clock(), Process(), Process()
    monitor = PerformanceMonitor(clock=clock)
    first.answer(0.05, 0.15)
    second.answer(0.15, 0.3)
    second.http.labels("/other").observe(7)
    first.rows.labels("a").inc(10)
    second.rows.labels("b").inc(30)
    clock.now += 20
    found = monitor.report(gathered(api=first, control=second))
    assert found.window_s == 20
    route = found.routes["/api"]
    assert (route.count, route.per_s) == (4, 0.2)
    assert route.p50_ms == pytest.approx(150)
    assert route.p90_ms == pytest.approx(320)
    assert route.p99_ms == pytest.approx(392)
    assert found.routes["/other"].p50_ms == pytest.approx(400)
    assert found.stages["http"].count == 5
    assert found.throughput.rows_stored_per_s == 2
    assert found.throughput.events_accepted_per_s == 0


def test_report_of_one_process_needs_no_label() -> None:
    process = Process()
    process.answer(0.1)
    assert PerformanceMonitor().report(process.registry.collect()).stages["http"].count == 1


def test_replaced_process_counts_from_the_start_of_its_successor() -> None:
    clock, first, second = Clock(), Process(), Process()
    monitor = PerformanceMonitor(clock=clock)
    first.answer(*[0.3] * 3)
    second.answer(0.3)
    clock.now += 10
    monitor.report(gathered(api=first, control=second))
    clock.now += 60
    successor = Process(started_at=2)
    successor.answer(*[0.05] * 8, *[0.3] * 4)
    second.answer(0.3)
    route = monitor.report(gathered(api=successor, control=second)).routes["/api"]
    assert route.count == 13
    assert route.p50_ms == pytest.approx(1000 * 0.1 * 6.5 / 8, abs=0.001)


def test_process_that_did_not_answer_once_is_not_counted_again() -> None:
    clock, first, second = Clock(), Process(), Process()
    monitor = PerformanceMonitor(clock=clock)
    first.answer(*[0.3] * 10)
    second.answer(0.3)
    for processes in ({"api": first, "control": second}, {"control": second}):
        clock.now += 60
        monitor.report(gathered(**processes))
    clock.now += 60
    first.answer(0.3)
    assert monitor.report(gathered(api=first, control=second)).routes["/api"].count == 1


def test_nothing_observed_has_no_quantiles() -> None:
    clock, process = Clock(), Process()
    process.answer(1)
    monitor = PerformanceMonitor(clock=clock)
    clock.now += 10
    monitor.report(process.registry.collect())
    clock.now += 60
    http = monitor.report(process.registry.collect()).stages["http"]
    assert (http.count, http.per_s, http.p50_ms, http.p99_ms) == (0, 0, None, None)
    assert not math.isnan(http.per_s)
