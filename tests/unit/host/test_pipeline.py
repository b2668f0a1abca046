"""State of the path of events, read from metrics."""

from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram

from mev.host.pipeline import Pipeline


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lag_and_freshness_are_those_of_the_metrics() -> None:
    registry = CollectorRegistry()
    lag = Gauge("mev_sink_lag_messages", "Lag.", ["topic"], registry=registry)
    lag.labels("a").set(3)
    lag.labels("b").set(4)
    Gauge("mev_tail_lag_messages", "Lag.", ["topic"], registry=registry).labels("a").set(5)
    Gauge("mev_sink_retrying_blocks", "Blocks.", registry=registry).set(1)
    Gauge("mev_sink_oldest_seconds", "Age.", registry=registry).set(1.5)
    stored_at = Gauge("mev_sink_stored_timestamp_seconds", "When.", registry=registry)
    pipeline = Pipeline(registry)
    assert pipeline.status().sink.last_stored_at is None
    stored_at.set(86_400)
    status = pipeline.status()
    assert (status.lag.stream_messages, status.lag.sink_messages) == (5, 7)
    assert status.lag.sink_messages_by_topic == {"a": 3, "b": 4}
    assert (status.lag.sink_retrying_blocks, status.lag.audit_copy_records) == (1, 0)
    assert status.sink.oldest_waiting_s == 1.5
    assert status.sink.last_stored_at == datetime(1970, 1, 2, tzinfo=UTC)


def test_quantiles_are_interpolated_inside_their_bucket() -> None:
    registry = CollectorRegistry()
    seconds = Histogram("mev_publish_seconds", "Time.", buckets=[0.1, 0.2, 0.4], registry=registry)
    pipeline = Pipeline(registry)
    assert pipeline.status().stages["publish"].p50_ms is None
    for value in (0.05, 0.15, 0.15, 0.3):
        seconds.observe(value)
    publish = pipeline.status().stages["publish"]
    assert publish.count == 4
    assert publish.p50_ms == pytest.approx(150)
    assert publish.p99_ms == pytest.approx(392)
    for _ in range(100):
        seconds.observe(7)
    assert pipeline.status().stages["publish"].p99_ms == pytest.approx(400)


def test_latencies_cover_the_latest_minute() -> None:
    registry, clock = CollectorRegistry(), Clock()
    stage = Histogram(
        "mev_realtime_stage_seconds", "Time.", ["stage"], buckets=[1, 2], registry=registry
    )
    pipeline = Pipeline(registry, clock=clock)
    stage.labels("flush").observe(0.5)
    clock.now += 30
    assert (pipeline.status().window_s, pipeline.status().stages["flush"].count) == (30, 1)
    for _ in range(90):
        clock.now += 1
        stage.labels("flush").observe(1.5)
        status = pipeline.status()
    assert (status.window_s, status.stages["flush"].count) == (60, 60)
    clock.now += 3600
    assert pipeline.status().window_s == 3600
    clock.now += 9
    assert pipeline.status().window_s == 3609
    clock.now += 50
    status = pipeline.status()
    assert (status.window_s, status.stages["flush"].count) == (59, 0)
