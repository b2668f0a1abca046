"""Settings of accounts, browsers, and limits of requests."""

from pydantic import Field

from mev.settings.types import Networks, Origins, Seconds, VariableGroup


class AccountsVariables(VariableGroup):
    """Tokens, sessions, keys and logins."""

    access_token_s: Seconds = Field(600.0, description="Lifetime of an access token.")
    session_s: float = Field(
        14 * 86_400,
        ge=60,
        le=366 * 86_400,
        description="Lifetime of a login before the password is required again.",
    )
    browser_session_s: Seconds = Field(12 * 3600, description="Lifetime of a dashboard login.")
    access_cache_s: Seconds = Field(
        5.0,
        description=(
            "Cache time of credential checks; a revocation takes effect everywhere within it."
        ),
    )
    access_stale_s: Seconds = Field(
        900.0, description="Time valid keys stay accepted while Redis is unavailable."
    )
    api_key_max_days: int = Field(
        365, ge=1, le=3660, description="Longest lifetime of an API key, in days."
    )
    login_free_failures: int = Field(
        5, ge=1, le=100, description="Wrong passwords before a name is locked."
    )
    login_lock_s: Seconds = Field(
        2.0, description="First lock; each further wrong password doubles it."
    )
    login_lock_max_s: Seconds = Field(900.0, description="Longest lock.")


class BrowsersVariables(VariableGroup):
    """Origins of pages, and proxies."""

    cors_allowed_origins: Origins = Field(
        (), description="Further origins whose pages may use the API, comma-separated."
    )
    csp_connect_sources: Origins = Field(
        (),
        description=(
            "Further addresses that the API's own pages may connect to, such as WebTransport."
        ),
    )
    trusted_proxies: Networks = Field(
        (),
        description=(
            "Addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are trusted,"
            " comma-separated."
        ),
    )


class LimitsVariables(VariableGroup):
    """Rates, connections, sizes and load shedding."""

    rate_limit_per_second: int = Field(
        1000, ge=1, description="Requests per second of one user or key, over all processes."
    )
    rate_limit_burst: int | None = Field(
        None, ge=1, description="Request burst of one user or key; twice the rate when not set."
    )
    ip_rate_per_second: float = Field(
        20.0,
        gt=0,
        description=(
            "Unauthenticated requests per second of one address: logins, wrong or missing keys."
        ),
    )
    ip_rate_burst: int = Field(
        200, ge=1, description="Burst of unauthenticated requests of one address."
    )
    http_max_connections: int = Field(10_000, ge=1, description="HTTP connections per process.")
    http_connections_per_ip: int = Field(
        1_000, ge=1, description="HTTP connections per address; trusted proxies may have more."
    )
    http_control_connections: int = Field(
        64,
        ge=1,
        le=1024,
        description="HTTP connections reserved for /api/control/, beyond both limits.",
    )
    http_forwarded_requests: int = Field(
        512,
        ge=2,
        le=10_000,
        description="Complete requests that a worker has under way in the control process, half "
        "of them from one address; control paths have HTTP_CONTROL_CONNECTIONS more.",
    )
    control_rate_per_second: int = Field(
        100,
        ge=1,
        description=(
            "Requests per second of one user or key to /api/control/, counted separately; the kill"
            " switch has the same limit again."
        ),
    )
    control_rate_burst: int = Field(
        200, ge=1, description="Burst of requests of one user or key to /api/control/."
    )
    http_max_header_bytes: int = Field(
        32_768, ge=1024, le=1 << 20, description="Largest request line and headers, in bytes."
    )
    http_header_timeout_s: Seconds = Field(10.0, description="Timeout of reading request headers.")
    http_pipelined_requests: int = Field(
        8,
        ge=1,
        le=1000,
        description="Requests that may wait on a connection for the answer to the one before.",
    )
    http_max_body_bytes: int = Field(
        1 << 20,
        ge=1024,
        le=1 << 30,
        description="Largest request body outside the bulk ingest, in bytes.",
    )
    http_max_compression_ratio: float = Field(
        100.0,
        ge=1,
        description="Largest ratio of decoded to received body size, applied above 1 MiB.",
    )
    http_body_timeout_s: Seconds = Field(30.0, description="Timeout of reading a request body.")
    http_stall_timeout_s: Seconds = Field(
        60.0, description="Time a client may read nothing of its response."
    )
    shed_lag_ms: float = Field(
        250.0,
        gt=0,
        description="Lag of the event loop above which requests are refused with 503.",
    )
    shed_queue_fraction: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Fill level of the producer queue above which events are refused with 503.",
    )

    @property
    def effective_rate_burst(self) -> int:
        """Return the request burst of one principal."""
        return self.rate_limit_burst or 2 * self.rate_limit_per_second
