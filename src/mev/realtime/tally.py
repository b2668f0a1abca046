"""Counts of what the hub does, read by Prometheus when it asks.

The hot path adds to plain integers; nothing there takes a lock or looks up a label.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class Encoding(StrEnum):
    """What a client reads."""

    JSON = "json"
    PROTOBUF = "protobuf"


class Loss(StrEnum):
    """Why a client did not get an event."""

    DROP_OLDEST = "drop_oldest"
    CONFLATE = "conflate"
    MAX_RATE = "max_rate"
    BUDGET = "budget"
    GAP = "gap"
    """It was gone from the broker before it could be read."""


class Carrier(NamedTuple):
    """How events reach a client: `transport` is ``websocket`` or ``webtransport``."""

    transport: str
    encoding: Encoding


class Tally:
    """Counts of all connections of one carrier."""

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


class TallyCollector(Collector):
    """Show tallies as `mev_realtime_*`, labelled by transport and encoding."""

    def __init__(self, tallies: Mapping[Carrier, Tally]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        labels = list(Carrier._fields)
        gauge = GaugeMetricFamily("mev_realtime_connections", "Open connections.", labels=labels)
        dropped = CounterMetricFamily(
            "mev_realtime_events_dropped", "Events a connection lost, by why: its own policy, or `gap`.", labels=[*labels, "policy"]
        )
        counters = {name: CounterMetricFamily(f"mev_realtime_{name}", text, labels=labels) for name, text in _COUNTERS.items()}
        for carrier, tally in list(self._tallies.items()):
            values = [carrier.transport, carrier.encoding.value]
            gauge.add_metric(values, tally.connections)
            for loss, number in tally.events_dropped.items():
                dropped.add_metric([*values, loss.value], number)
            for name, counter in counters.items():
                counter.add_metric(values, getattr(tally, name))
        yield gauge
        yield dropped
        yield from counters.values()
