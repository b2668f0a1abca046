"""How long events take from the broker to a client, stage by stage: one observation a batch, not one a message."""

import time

from prometheus_client import Histogram

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_STAGES = Histogram(
    "mev_realtime_stage_seconds",
    "Time of a batch's oldest event from publishing to the hub (receive), there until its frame is made (flush), and, "
    "where a client was behind, until its connection took it (queue).",
    ["stage"],
    buckets=_BUCKETS,
)
FLUSH = _STAGES.labels("flush")
QUEUE = _STAGES.labels("queue")
_RECEIVE = _STAGES.labels("receive")


def received(published_ms: int) -> None:
    """Observe a batch whose first event was published at `published_ms`."""
    if published_ms > 0:
        _RECEIVE.observe(max(0.0, time.time() - published_ms / 1000))
