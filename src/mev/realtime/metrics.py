"""Metrics of the streams, collected by Prometheus.

The hot path increments plain integers; it takes no lock and looks up no label.
"""

import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from prometheus_client import Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mev.realtime.batch import Encoding


class Loss(StrEnum):
    """Reason why a client lost an event."""

    DROP_OLDEST = "drop_oldest"
    CONFLATE = "conflate"
    MAX_RATE = "max_rate"
    BUDGET = "budget"
    GAP = "gap"
    """Deleted by the broker before it could be read."""


class Carrier(NamedTuple):
    """Transport and encoding of a connection.

    `transport` is ``websocket``, ``webtransport`` or ``sse``.
    """

    transport: str
    encoding: Encoding


class HubMetrics:
    """Counts of all connections with one transport and encoding."""

    __slots__ = ("bytes_sent", "connections", "events_dropped", "events_sent", "frames_sent")

    def __init__(self) -> None:
        self.connections = 0
        self.events_sent = 0
        self.events_dropped = dict.fromkeys(Loss, 0)
        self.frames_sent = 0
        self.bytes_sent = 0


_COUNTERS = {
    "events_sent": "Events handed to connections.",
    "frames_sent": "Batches handed to connections.",
    "bytes_sent": "Bytes of batches handed to connections.",
}


class HubMetricsCollector(Collector):
    """Exports counts as `mev_realtime_*`, labelled by transport and encoding."""

    def __init__(self, tallies: Mapping[Carrier, HubMetrics]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        labels = list(Carrier._fields)
        gauge = GaugeMetricFamily("mev_realtime_connections", "Open connections.", labels=labels)
        dropped = CounterMetricFamily(
            "mev_realtime_events_dropped",
            "Events a connection lost, by why: its own policy, or `gap`.",
            labels=[*labels, "policy"],
        )
        counters = {
            name: CounterMetricFamily(f"mev_realtime_{name}", text, labels=labels)
            for name, text in _COUNTERS.items()
        }
        for carrier, hub_metrics in list(self._tallies.items()):
            values = [carrier.transport, carrier.encoding.value]
            gauge.add_metric(values, hub_metrics.connections)
            for loss, number in hub_metrics.events_dropped.items():
                dropped.add_metric([*values, loss.value], number)
            for name, counter in counters.items():
                counter.add_metric(values, getattr(hub_metrics, name))
        yield gauge
        yield dropped
        yield from counters.values()


_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_STAGES = Histogram(
    "mev_realtime_stage_seconds",
    "Time of a batch's oldest event from publishing to the hub (receive), "
    "there until its frame is made (flush), and, "
    "where a client was behind, until its connection took it (queue).",
    ["stage"],
    buckets=_BUCKETS,
)
FLUSH_LATENCY = _STAGES.labels("flush")
QUEUE_LATENCY = _STAGES.labels("queue")
_RECEIVE_LATENCY = _STAGES.labels("receive")


def observe_receive(published_ms: int) -> None:
    """Observe a batch whose first event was published at `published_ms`."""
    if published_ms > 0:
        _RECEIVE_LATENCY.observe(max(0.0, time.time() - published_ms / 1000))


_WEBTRANSPORT_GAUGES = {
    "connections": "Open QUIC connections, with those still shaking hands.",
    "sessions": "Open WebTransport sessions.",
}
_WEBTRANSPORT_COUNTERS = {
    "sessions_opened": "Sessions accepted.",
    "requests_refused": "Requests answered with an error.",
    "packets_ignored": "UDP datagrams that belonged to no connection and opened none.",
    "packets_given_up": (
        "UDP datagrams of handshakes that were lost because handshakes took too much of the"
        " processor."
    ),
    "packets_unsent": "UDP datagrams that the kernel had no room for.",
    "connections_refused": (
        "Handshakes not begun because there were too many, in all or of one address."
    ),
    "retries": "Handshakes asked to show that their address is theirs.",
    "frames_given_up": "Frames that were late or that the client stopped.",
    "datagrams_given_up": "Datagrams that made room for newer ones.",
    "datagrams_ignored": "Datagrams of clients.",
    "streams_refused": "Streams of clients beside the control stream.",
    "failures": "Connections ended by an error of ours.",
}


class WebTransportCounts:
    """Plain integers, incremented by the hot path."""

    __slots__ = (*_WEBTRANSPORT_GAUGES, *_WEBTRANSPORT_COUNTERS)

    def __init__(self) -> None:
        self.connections = 0
        self.sessions = 0
        self.sessions_opened = 0
        self.requests_refused = 0
        self.packets_ignored = 0
        self.packets_given_up = 0
        self.packets_unsent = 0
        self.connections_refused = 0
        self.retries = 0
        self.frames_given_up = 0
        self.datagrams_given_up = 0
        self.datagrams_ignored = 0
        self.streams_refused = 0
        self.failures = 0


class WebTransportCollector(Collector):
    """Exports counts as `mev_webtransport_*`."""

    def __init__(self, counts: WebTransportCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for name, text in _WEBTRANSPORT_GAUGES.items():
            yield GaugeMetricFamily(
                f"mev_webtransport_{name}", text, value=getattr(self._counts, name)
            )
        for name, text in _WEBTRANSPORT_COUNTERS.items():
            yield CounterMetricFamily(
                f"mev_webtransport_{name}", text, value=getattr(self._counts, name)
            )
