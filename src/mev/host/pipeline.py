"""State of the path of events: lag, freshness of the stored events, latency of each stage.

The figures are those of this process's metrics, so that they agree with ``GET /metrics``.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import REGISTRY, CollectorRegistry

from mev.host.window import Buckets, SampleWindow, quantile_ms

_STREAM_LAG = "mev_tail_lag_messages"
_SINK_LAG = "mev_sink_lag_messages"
_RETRYING = "mev_sink_retrying_blocks"
_AUDIT_LAG = "mev_audit_copy_lag_records"
_OLDEST = "mev_sink_oldest_seconds"
_STORED_AT = "mev_sink_stored_timestamp_seconds"
_GAUGES = (_STREAM_LAG, _SINK_LAG, _RETRYING, _AUDIT_LAG, _OLDEST, _STORED_AT)
_HISTOGRAMS = {
    "mev_publish_seconds_bucket": "publish",
    "mev_realtime_stage_seconds_bucket": "stream",
    "mev_sink_insert_seconds_bucket": "insert",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """Messages, blocks and records that were published and have not arrived yet."""

    stream_messages: int
    sink_messages: int
    sink_messages_by_topic: dict[str, int]
    sink_retrying_blocks: int
    audit_copy_records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """Age of the stored events.

    `oldest_waiting_s` is the age of the oldest event that is read from Kafka and not stored yet, 0
    without one; `last_stored_at` is null before the first block.
    """

    oldest_waiting_s: float
    last_stored_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLatency:
    """Latency of a stage in the latest seconds, estimated from a histogram; null without one.

    A quantile in the last bucket is given as its lower bound.
    """

    count: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """State of the path of events; `stages` covers the latest `window_s`."""

    lag: Lag
    sink: Freshness
    window_s: float
    stages: dict[str, StageLatency]


class Pipeline:
    """Reads the state of the path of events from `registry`.

    Latencies cover about the latest minute: the time since an earlier request, or since the start.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._window: SampleWindow[Mapping[str, Buckets]] = SampleWindow({}, clock=clock)

    def status(self) -> PipelineStatus:
        """Return the current state."""
        gauges = self._gauges()
        stored_at = gauges[_STORED_AT].get("", 0)
        buckets = self._buckets()
        window_s, before = self._window.add(buckets)
        return PipelineStatus(
            lag=Lag(
                stream_messages=int(sum(gauges[_STREAM_LAG].values())),
                sink_messages=int(sum(gauges[_SINK_LAG].values())),
                sink_messages_by_topic={
                    topic: int(value) for topic, value in sorted(gauges[_SINK_LAG].items())
                },
                sink_retrying_blocks=int(gauges[_RETRYING].get("", 0)),
                audit_copy_records=int(gauges[_AUDIT_LAG].get("", 0)),
            ),
            sink=Freshness(
                oldest_waiting_s=round(gauges[_OLDEST].get("", 0), 3),
                last_stored_at=datetime.fromtimestamp(stored_at, UTC) if stored_at else None,
            ),
            window_s=round(window_s, 3),
            stages={
                stage: _latency(_difference(counts, before.get(stage, {})))
                for stage, counts in sorted(buckets.items())
            },
        )

    def _gauges(self) -> dict[str, dict[str, float]]:
        """Return the value of each gauge by its topic, or by "" without one."""
        found: dict[str, dict[str, float]] = {name: {} for name in _GAUGES}
        for name, labels, value in self._read(_GAUGES):
            found[name][labels.get("topic", "")] = value
        return found

    def _buckets(self) -> Mapping[str, Buckets]:
        found: dict[str, dict[float, float]] = {}
        for name, labels, value in self._read(_HISTOGRAMS):
            stage = labels.get("stage") or _HISTOGRAMS[name]
            found.setdefault(stage, {})[float(labels["le"])] = value
        return found

    def _read(
        self, names: Mapping[str, str] | tuple[str, ...]
    ) -> Iterator[tuple[str, Mapping[str, str], float]]:
        for metric in self._registry.restricted_registry(list(names)).collect():
            for sample in metric.samples:
                yield sample.name, sample.labels, sample.value


def _difference(now: Buckets, before: Buckets) -> Buckets:
    return {bound: value - before.get(bound, 0) for bound, value in now.items()}


def _latency(counts: Buckets) -> StageLatency:
    return StageLatency(
        count=int(counts.get(math.inf, 0)),
        p50_ms=quantile_ms(counts, 0.5),
        p99_ms=quantile_ms(counts, 0.99),
    )
