"""Limits of the realtime service: plain values, set at start."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLimits:
    """Limits and periods of the hub."""

    batch_window_ms: float = 15
    """Longest time an event waits for others before its frame is sent."""
    batch_max_size: int = 256
    """Most events in one frame; a full frame is sent at once."""
    soft_buffer_bytes: int = 1 << 20
    """Unsent bytes in a connection's transport above which its frames are queued instead."""
    queue_bytes: int = 4 << 20
    """Most bytes queued for one connection; beyond it the oldest frames are dropped and counted."""
    budget_bytes: int = 512 << 20
    """Most bytes queued in the whole process; beyond it the largest queues are dropped."""
    json_events_per_s: int = 2_000
    """Most events a second for one JSON connection; the rest is counted as dropped."""
    connections: int = 10_000
    """Most open connections; the next one is answered 503."""
    subscriptions: int = 32
    """Most subscriptions of one connection."""
    message_bytes: int = 8 << 20
    """Largest message of a client, with its key set; a larger one closes the connection.

    The close code is 1009.
    """
    unauthenticated_bytes: int = 64 * 1024
    """Largest message of a client that is not authenticated yet."""
    auth_timeout_s: float = 5
    """Time in which a client without a key in its request headers must send its `auth` message."""
    stall_timeout_s: float = 30
    """A client that has bytes waiting and takes none of them for this long is disconnected."""
    ping_interval_s: float = 20
    """Time between pings; a client silent for two intervals after one is disconnected."""
    position_s: float = 5
    """How often a client with a selective filter is sent its position."""
    replay_patience_s: float = 5
    """How long a reader waits for its client before it is returned to the pool."""
    snapshot_keys: int = 10_000
    """Keys of one event type in a snapshot; those written longest ago are omitted."""
    snapshot_scan_events: int = 500_000
    """Events at the end of an event type's log that are read back for its first snapshot."""
    messages_per_s: int = 100
    """Most messages a second that a client may send, with as many at once."""
    close_timeout_s: float = 5
    """Time for a client to answer a close frame it has read; else `stall_timeout_s` applies."""
    tick_s: float = 1
    """Period of the time-out checks, which is their precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebTransportLimits:
    """Limits and periods of the WebTransport server."""

    sessions: int = 1_000
    """Most open sessions; the next one is answered 503."""
    sessions_per_address: int = 100
    """Most open sessions of one address, or of one /64 network of IPv6."""
    unacknowledged_bytes: int = 8 << 20
    """Most unacknowledged bytes of a client.

    Beyond it stale frames are dropped, or the session is closed.
    """
    stale_s: float = 5
    """Age at which a stale frame is dropped for newer ones."""
    idle_timeout_s: float = 30
    """Longest silence of a client."""
    max_datagram_bytes: int = 1_350
    """Largest UDP payload sent."""
    low_latency: bool = False
    """True if packets are sent without pacing, limited by the congestion window only."""
    datagrams_waiting: int = 64
    """Most datagrams queued for a session; newer ones replace older ones."""
    early_bytes: int = 64 * 1024
    """Most bytes of a control stream buffered before the session is accepted."""
    overhead_bytes: int = 256 * 1024
    """Most bytes of a client outside its control stream, over the life of its connection."""
    requests: int = 16
    """Most requests and refused streams of one connection."""
    half_open: int = 512
    """Most connections with an unfinished handshake; others must wait."""
    retry_above: int = 32
    """So many of them, and newcomers must first show that their address is theirs."""
    handshake_share: float = 0.5
    """Most of a processor for unfinished handshakes; above it their packets are dropped."""
    connect_timeout_s: float = 5
    """Time from a connection's first packet to its session."""
    close_grace_s: float = 2
    """Time for data sent before a close to arrive."""
    linger_s: float = 1
    """Time for a client to close its connection after the end of the session.

    A browser that gets both ends at once may report a failure.
    """
    closed: int = 1_000
    """Most closed connections whose last packets are stored, for resending."""
    tick_s: float = 0.25
    """Period of the time-out checks."""
