"""What bounds the realtime service; plain values, set by the composition root."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound and period of the hub."""

    batch_window_ms: float = 15
    """Longest time an event waits for others before its frame is sent."""
    batch_max_size: int = 256
    """Most events in one frame; a full frame is sent at once."""
    soft_buffer_bytes: int = 1 << 20
    """Unsent bytes in a connection's transport above which its frames are queued instead."""
    queue_bytes: int = 4 << 20
    """Most bytes queued for one connection; beyond it the oldest frames are dropped and counted."""
    budget_bytes: int = 512 << 20
    """Most bytes queued in the whole process; beyond it those who hold most give up what they hold."""
    json_events_per_s: int = 2_000
    """Most events a second for one JSON connection; the rest is counted as dropped."""
    connections: int = 10_000
    """Most open connections; the next one is answered 503."""
    subscriptions: int = 32
    """Most subscriptions of one connection."""
    message_bytes: int = 8 << 20
    """Largest message a client may send, with its key set; a larger one closes the connection with 1009."""
    stranger_bytes: int = 64 * 1024
    """Largest message of a client that has not said yet who it is."""
    auth_timeout_s: float = 5
    """Time in which a client without a key in its request headers must send its `auth` message."""
    stall_timeout_s: float = 30
    """A client that has bytes waiting and takes none of them for this long is disconnected."""
    ping_interval_s: float = 20
    """Time between pings; a client silent for two intervals after one is disconnected."""
    position_s: float = 5
    """How often a client whose filter lets little through is told how far the filter has looked."""
    replay_patience_s: float = 5
    """How long a reader of the past waits for its client before somebody else may have its place."""
    messages_per_s: int = 100
    """Most messages a second that a client may send, with as many at once."""
    close_timeout_s: float = 5
    """Time a client has to answer a close frame."""
    tick_s: float = 1
    """How often time-outs are looked at: the precision of all of them."""
