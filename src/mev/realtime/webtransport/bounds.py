"""What bounds the gateway; plain values, set by the composition root."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Every bound and period of the gateway."""

    sessions: int = 1_000
    """Most open sessions; the next one is answered 503."""
    sessions_per_address: int = 100
    """Most open sessions of one address, of one /64 network of IPv6."""
    unacknowledged_bytes: int = 8 << 20
    """What a client may leave unacknowledged; frames that may be given up make room, else its session is cut."""
    stale_s: float = 5
    """Age at which a frame that may be given up is given up for newer ones."""
    idle_timeout_s: float = 30
    """How long a client may be silent."""
    max_datagram_bytes: int = 1_350
    """Largest UDP payload sent."""
    low_latency: bool = False
    """Whether packets leave as fast as the congestion window lets them, without pacing."""
    datagrams_waiting: int = 64
    """Most datagrams of a session that wait; newer ones take the place of older ones."""
    early_bytes: int = 64 * 1024
    """Most bytes of a control stream that are kept while it is not known whether there will be a session."""
    overhead_bytes: int = 256 * 1024
    """Most bytes of a client outside its control stream, over the life of its connection."""
    requests: int = 16
    """Most requests and refused streams of one connection."""
    half_open: int = 512
    """Most connections that have not finished their handshake; others wait for their turn."""
    retry_above: int = 32
    """So many of them, and newcomers must first show that their address is theirs."""
    connect_timeout_s: float = 5
    """Time from a connection's first packet to its session."""
    close_grace_s: float = 2
    """Time in which what was handed over before a close may still arrive."""
    linger_s: float = 1
    """Time a client has to close its connection after it was told of the end; a browser told of both at once may see a failure."""
    tick_s: float = 0.25
    """How often time-outs are looked at."""
