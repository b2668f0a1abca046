"""Settings of streams."""

from pydantic import Field

from mev.settings.types import FilePath, Origins, Port, Seconds, VariableGroup


class StreamsVariables(VariableGroup):
    """Batches and WebSocket connections."""

    batch_window_ms: float = Field(
        15.0,
        ge=1,
        le=1000,
        description="Longest time that an event waits for its batch, under load; "
        "after a quiet time it is sent at once. 10 to 25 is usual.",
    )
    batch_max_size: int = Field(
        256, ge=1, le=65_536, description="Largest number of events per batch."
    )
    ws_max_connections: int = Field(10_000, ge=1, description="WebSocket connections per process.")
    ws_connections_per_principal: int = Field(
        1_000, ge=1, description="WebSocket connections of one user or key per process."
    )
    ws_buffer_bytes: int = Field(
        4 << 20,
        ge=65_536,
        description="Buffer of one slow client before its oldest events are dropped, in bytes.",
    )
    ws_budget_bytes: int = Field(
        512 << 20,
        ge=1 << 20,
        description="Buffer of all slow clients of one process together, in bytes.",
    )
    ws_subscriptions_per_principal: int = Field(
        10_000, ge=1, description="Subscriptions of one user or key per process."
    )
    ws_bytes_per_second_per_principal: int = Field(
        0, ge=0, description="Bytes per second sent to one user or key; 0 for no limit."
    )
    ws_replays: int = Field(
        8,
        ge=1,
        le=256,
        description="Concurrent replays per process.",
    )
    ws_json_events_per_second: int = Field(
        2000, ge=1, description="Events per second of a connection that reads JSON text."
    )
    ws_deflate: bool = Field(
        False,
        description=(
            "Compress WebSocket messages of JSON connections that request it; needs much CPU time."
        ),
    )
    ws_snapshot_keys: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description=(
            "Largest number of keys of one event type in a snapshot; the newest are retained."
        ),
    )
    ws_snapshot_scan_events: int = Field(
        500_000,
        ge=0,
        le=100_000_000,
        description=(
            "Events at the end of an event type's log that are read for its first snapshot."
        ),
    )
    ws_auth_timeout_s: Seconds = Field(
        5.0, description="Timeout of the authentication of a connection."
    )
    ws_stall_timeout_s: Seconds = Field(
        30.0, description="Time a client may read nothing before it is disconnected."
    )
    ws_ping_interval_s: Seconds = Field(
        20.0,
        description="Interval between keep-alive pings; two unanswered ones end the connection.",
    )
    ws_allowed_origins: Origins = Field(
        (), description="Further origins whose pages may connect, comma-separated."
    )


class WebTransportVariables(VariableGroup):
    """WebTransport."""

    enable_webtransport: bool = Field(True, description="Serve WebTransport.")
    wt_host: str = Field("127.0.0.1", description="Address WebTransport listens on.")
    wt_port: Port = Field(4433, description="UDP port of WebTransport.")
    wt_certificate_file: FilePath | None = Field(
        None,
        description=(
            "PEM file of the WebTransport certificate chain; self-signed, for pages that know its"
            " hash, when not set."
        ),
    )
    wt_key_file: FilePath | None = Field(
        None, description="PEM file of its private key; in the certificate's file when not set."
    )
    wt_max_sessions: int = Field(1_000, ge=1, description="WebTransport sessions per process.")
    wt_sessions_per_ip: int = Field(100, ge=1, description="WebTransport sessions per address.")
    wt_unacknowledged_bytes: int = Field(
        8 << 20,
        ge=2 << 20,
        description="Unacknowledged bytes above which a WebTransport session is closed.",
    )
    wt_stale_s: Seconds = Field(
        5.0,
        description=(
            "Age above which an undelivered frame is dropped in favour of newer ones, unless"
            " lossless."
        ),
    )
    wt_idle_timeout_s: Seconds = Field(
        30.0,
        description=(
            "Time without packets, pings included, after which a WebTransport session is closed."
        ),
    )
    wt_low_latency: bool = Field(
        False,
        description=(
            "Send without pacing: large frames arrive sooner on a fast network and are lost on a"
            " slow one."
        ),
    )
    wt_max_datagram_bytes: int = Field(
        1_350,
        ge=1_200,
        le=16_000,
        description=(
            "Largest UDP payload, in bytes; 1200 passes every tunnel, browsers accept 1472."
        ),
    )
