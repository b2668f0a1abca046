"""Counts of what the hub does, read by Prometheus when it asks.

The hot path adds to plain integers; nothing there takes a lock or looks up a label.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class Encoding(StrEnum):
    """What a client reads."""

    JSON = "json"
    PROTOBUF = "protobuf"


class Tally:
    """Counts of all connections of one encoding."""

    __slots__ = ("bytes_sent", "connections", "events_dropped", "events_sent", "frames_sent")

    def __init__(self) -> None:
        self.connections = 0
        self.events_sent = 0
        self.events_dropped = 0
        self.frames_sent = 0
        self.bytes_sent = 0


_COUNTERS = {
    "events_sent": "Events handed to connections.",
    "events_dropped": "Events a connection lost: too slow, or over the JSON rate.",
    "frames_sent": "Batches handed to connections.",
    "bytes_sent": "Bytes of batches handed to connections.",
}


class TallyCollector(Collector):
    """Show tallies as `mev_realtime_*`, labelled by transport and encoding."""

    def __init__(self, tallies: Mapping[Encoding, Tally], transport: str = "websocket") -> None:
        self._tallies = tallies
        self._transport = transport

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        labels = ["transport", "encoding"]
        gauge = GaugeMetricFamily("mev_realtime_connections", "Open connections.", labels=labels)
        counters = {name: CounterMetricFamily(f"mev_realtime_{name}", text, labels=labels) for name, text in _COUNTERS.items()}
        for encoding, tally in self._tallies.items():
            values = [self._transport, encoding.value]
            gauge.add_metric(values, tally.connections)
            for name, counter in counters.items():
                counter.add_metric(values, getattr(tally, name))
        yield gauge
        yield from counters.values()
