"""Counts of what the gateway does, read by Prometheus when it asks."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

_GAUGES = {
    "connections": "Open QUIC connections, with those still shaking hands.",
    "sessions": "Open WebTransport sessions.",
}
_COUNTERS = {
    "sessions_opened": "Sessions accepted.",
    "requests_refused": "Requests answered with an error.",
    "packets_ignored": "UDP datagrams that belonged to no connection and opened none.",
    "packets_unsent": "UDP datagrams that the kernel had no room for.",
    "connections_refused": "Handshakes not begun because there were too many, in all or of one address.",
    "retries": "Handshakes asked to show that their address is theirs.",
    "frames_given_up": "Frames that came too late or that the client did not want.",
    "datagrams_given_up": "Datagrams that made room for newer ones.",
    "datagrams_ignored": "Datagrams of clients.",
    "streams_refused": "Streams of clients beside the control stream.",
    "failures": "Connections ended by an error of ours.",
}


class Counts:
    """Plain integers; the hot path adds to them."""

    __slots__ = (*_GAUGES, *_COUNTERS)

    def __init__(self) -> None:
        self.connections = 0
        self.sessions = 0
        self.sessions_opened = 0
        self.requests_refused = 0
        self.packets_ignored = 0
        self.packets_unsent = 0
        self.connections_refused = 0
        self.retries = 0
        self.frames_given_up = 0
        self.datagrams_given_up = 0
        self.datagrams_ignored = 0
        self.streams_refused = 0
        self.failures = 0


class CountsCollector(Collector):
    """Show counts as `mev_webtransport_*`."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"mev_webtransport_{name}", text, value=getattr(self._counts, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"mev_webtransport_{name}", text, value=getattr(self._counts, name))
