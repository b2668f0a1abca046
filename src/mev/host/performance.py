"""Latency and throughput of the latest minute, from the same metrics as ``GET /metrics``."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import Metric

from mev.host.gather import LABEL
from mev.host.window import Buckets, Latency, SampleWindow, latency, rate

_SAMPLE_S = 5.0
_STAGES = {
    "mev_http_seconds_bucket": "http",
    "mev_publish_seconds_bucket": "publish",
    "mev_realtime_stage_seconds_bucket": None,  # its label `stage`
    "mev_sink_insert_seconds_bucket": "insert",
}
_RATES = {
    "mev_ingest_events_total": "events_accepted_per_s",
    "mev_ingest_rejected_total": "events_rejected_per_s",
    "mev_publish_messages_total": "messages_published_per_s",
    "mev_publish_failed_total": "messages_not_published_per_s",
    "mev_realtime_events_sent_total": "stream_events_sent_per_s",
    "mev_realtime_events_dropped_total": "stream_events_dropped_per_s",
    "mev_sink_rows_total": "rows_stored_per_s",
    "mev_sink_dead_letters_total": "dead_letters_per_s",
}
_STARTED_AT = "process_start_time_seconds"
SAMPLES = (*_STAGES, *_RATES, _STARTED_AT)
"""Names of the samples that a report is made of."""
_Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Events and messages per second."""

    events_accepted_per_s: float
    events_rejected_per_s: float
    messages_published_per_s: float
    messages_not_published_per_s: float
    stream_events_sent_per_s: float
    stream_events_dropped_per_s: float
    rows_stored_per_s: float
    dead_letters_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """Latency of each stage and of each HTTP route, and rates, in the latest `window_s`.

    A system of several processes is shown as one: the sum over its processes.
    """

    window_s: float
    stages: dict[str, Latency]
    routes: dict[str, Latency]
    throughput: Throughput


class PerformanceMonitor:
    """Turns counters into figures of about the latest minute, or since an earlier report."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._latest: Mapping[_Series, float] = {}
        self._window: SampleWindow[Mapping[_Series, float]] = SampleWindow(
            {}, every_s=_SAMPLE_S, clock=clock
        )

    def report(self, families: Iterable[Metric]) -> Performance:
        """Return the figures of a system whose current metrics are `families`.

        A process that was replaced in the window counts from the start of its successor; of one
        that does not answer, the latest known samples are used.
        """
        current = self._latest = dict(self._latest) | {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
            if sample.name in SAMPLES
        }
        window_s, earlier = self._window.add(current)
        restarted = {
            dict(series[1]).get(LABEL)
            for series, value in current.items()
            if series[0] == _STARTED_AT and value != earlier.get(series)
        }
        stages: dict[str, dict[float, float]] = {}
        routes: dict[str, dict[float, float]] = {}
        rates = dict.fromkeys(_RATES.values(), 0.0)
        for series, value in current.items():
            name, labels = series[0], dict(series[1])
            if name == _STARTED_AT:
                continue
            before = 0.0 if labels.get(LABEL) in restarted else earlier.get(series, 0.0)
            change = value - before
            if name in _RATES:
                rates[_RATES[name]] += change
                continue
            bound = float(labels["le"])
            _add(stages, _STAGES[name] or labels["stage"], bound, change)
            if "route" in labels:
                _add(routes, labels["route"], bound, change)
        return Performance(
            window_s=round(window_s, 3),
            stages=_latencies(stages, window_s),
            routes=_latencies(routes, window_s),
            throughput=Throughput(**{key: rate(each, window_s) for key, each in rates.items()}),
        )


def _add(found: dict[str, dict[float, float]], key: str, bound: float, change: float) -> None:
    buckets = found.setdefault(key, defaultdict(float))
    buckets[bound] += change


def _latencies(found: Mapping[str, Buckets], window_s: float) -> dict[str, Latency]:
    return {key: latency(buckets, window_s) for key, buckets in sorted(found.items())}
