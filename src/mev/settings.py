"""Every setting: its environment variable, type, default and meaning.

A service variable that is not set means that the service runs embedded; one that is set means that service. `load` is the only
way in; nothing else reads the environment.
"""

import json
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mev.core.errors import InvalidInputError

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Origins = Annotated[tuple[str, ...], NoDecode]
MASKED = "********"


class InvalidSettingsError(InvalidInputError):
    """A setting has a value that cannot be used."""

    code = "invalid_settings"


class Settings(BaseSettings):
    """The settings of one process. Variables are read in upper case; an empty one counts as not set."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    # Where things are
    mev_data_dir: Path = Field(Path("~/.local/share/mev"), description="Folder of everything this machine keeps.")
    api_host: str = Field("127.0.0.1", description="Address the API listens on; 0.0.0.0 for all.")
    api_port: Port = Field(8000, description="Port of HTTP and WebSocket; 0 takes a free one.")
    api_workers: int = Field(4, ge=1, le=256, description="API processes; 1 while any service is embedded.")
    model_dir: Path | None = Field(None, description="Folder of compiled models; models under the data folder when not set.")
    export_dir: Path | None = Field(
        None, description="Folder of the files of dataset exports; in the jobs' own folders under the data folder when not set."
    )

    train_schedulers: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Dask schedulers that trainings may use, tcp:// or tls://; comma-separated. They can run code on this machine."
    )

    train_jobs_per_principal: int = Field(4, ge=1, description="Trainings of one person, with all keys, that may wait or run.")
    train_search_max_s: float = Field(4 * 3600.0, gt=0, le=7 * 86_400, description="Longest time that a search for parameters may ask for.")

    # Services: not set means embedded
    kafka_brokers: str | None = Field(None, description="Kafka bootstrap servers, host:port,...; embedded when not set.")
    kafka_options: SecretStr = Field(SecretStr("{}"), description="More librdkafka properties as a JSON object, for instance TLS and SASL.")
    redis_url: SecretStr | None = Field(None, description="redis://, rediss:// or unix:// URL; embedded when not set.")
    clickhouse_host: str | None = Field(None, description="ClickHouse host; embedded when not set.")
    clickhouse_port: Port = Field(8123, description="ClickHouse HTTP port.")
    clickhouse_database: str = Field("mev", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Database of all tables.")
    clickhouse_user: str = Field("default", description="ClickHouse user.")
    clickhouse_password: SecretStr = Field(SecretStr(""), description="ClickHouse password.")
    clickhouse_secure: bool = Field(False, description="TLS to ClickHouse.")
    service_timeout_s: Seconds = Field(10.0, description="How long a service may take to answer at start and in health checks.")
    shutdown_timeout_s: Seconds = Field(20.0, description="How long an orderly stop may take.")

    query_timeout_s: Seconds = Field(10.0, description="How long a query for a page may run.")
    http_keep_alive_s: int = Field(75, ge=1, le=3600, description="How long an idle HTTP connection stays open.")

    # Secrets
    jwt_secret_key: SecretStr | None = Field(None, min_length=32, description="Key of access tokens, 32 characters or more.")
    jwt_previous_keys: SecretStr = Field(
        SecretStr(""), description="Keys before it, comma-separated: what they signed is accepted, until you take them out."
    )
    ctrl_sign_sk_hex: SecretStr | None = Field(None, description="Ed25519 seed that signs commands, 64 hexadecimal digits.")
    ctrl_pubkey_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Name of the signing key.")
    master_api_key: SecretStr | None = Field(
        None, min_length=16, description="Bootstrap key; made and kept in the data folder when not set."
    )
    mev_agent_key: SecretStr | None = Field(
        None, description="API key that agents of this machine enrol with: agents:enrol is all it needs; the master key when not set."
    )
    rpc_url: SecretStr | None = Field(None, description="Solana node that `mev capture` follows: here its key is in no list of processes.")

    # Control
    approvals_required: int | None = Field(
        None, ge=1, le=10, description="People who have to agree before agents may do more; 1 while any service is embedded, else 2."
    )
    approval_ttl_s: Seconds = Field(3600.0, description="How long a proposal waits for approval.")
    command_ttl_s: Seconds = Field(60.0, description="How long a command may be obeyed after it was issued.")
    command_publish_wait_s: Seconds = Field(2.0, description="How long a stop waits for the brokers before it is answered.")
    lease_ttl_s: Seconds = Field(10.0, description="How long an agent may trade without hearing from the control plane.")
    lease_renew_s: Seconds = Field(3.0, description="Pause between renewals of the lease.")
    agent_forget_days: float = Field(
        30.0, gt=0, le=3660, description="Days without a sign of life after which an agent is no longer enrolled."
    )
    control_journal_bytes: int = Field(
        16 << 20, ge=4096, description="Size of the control journal above which it is compacted; then again when it has doubled."
    )
    report_interval_s: Seconds = Field(2.0, description="Pause between an agent's reports; silent after three of them.")
    deploy_watch_s: Seconds = Field(1.0, description="Pause between looks at the deployments of models.")

    # Audit
    audit_checkpoint_s: Seconds = Field(10.0, description="Pause between signed checkpoints of the audit trail while it grows.")
    audit_retention_days: int = Field(
        0, ge=0, le=36_500, description="Days after which sealed audit files are removed; 0: never. Proofs stay valid."
    )

    # Accounts
    access_token_s: Seconds = Field(600.0, description="How long an access token lasts.")
    session_s: float = Field(14 * 86_400, ge=60, le=366 * 86_400, description="How long a login lasts before a password is wanted again.")
    browser_session_s: Seconds = Field(12 * 3600, description="How long a login of the dashboard lasts.")
    access_cache_s: Seconds = Field(
        5.0, description="How long an answer about a credential is relied on: within it, a revocation is felt everywhere."
    )
    access_stale_s: Seconds = Field(900.0, description="How long keys that were good are taken while Redis is away.")
    api_key_max_days: int = Field(365, ge=1, le=3660, description="Longest life of an API key, in days.")
    login_free_failures: int = Field(5, ge=1, le=100, description="Wrong passwords before a name is locked.")
    login_lock_s: Seconds = Field(2.0, description="First lock; each further wrong password doubles it.")
    login_lock_max_s: Seconds = Field(900.0, description="Longest lock.")

    # Browsers and proxies
    cors_allowed_origins: Origins = Field((), description="Origins of pages that may use the API, beside its own; comma-separated.")
    csp_connect_sources: Origins = Field((), description="What the API's own pages may connect to beside it, such as WebTransport.")
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Addresses or networks whose X-Forwarded-For and -Proto are believed; comma-separated."
    )

    # Limits
    rate_limit_per_second: int = Field(1000, ge=1, description="Requests a second of one user or key, over all processes.")
    rate_limit_burst: int | None = Field(None, ge=1, description="Requests at once; twice the rate when not set.")
    ip_rate_per_second: float = Field(
        20.0, gt=0, description="Requests a second of one address that do not show who sends them: logins, wrong keys, none."
    )
    ip_rate_burst: int = Field(200, ge=1, description="Such requests at once.")
    http_max_connections: int = Field(10_000, ge=1, description="HTTP connections of one process.")
    http_connections_per_ip: int = Field(1_000, ge=1, description="HTTP connections of one address; trusted proxies may have more.")
    http_max_header_bytes: int = Field(32_768, ge=1024, le=1 << 20, description="Largest request line and headers.")
    http_header_timeout_s: Seconds = Field(10.0, description="How long the headers of a request may take.")
    http_max_body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30, description="Largest request body outside the bulk ingest.")
    http_body_timeout_s: Seconds = Field(30.0, description="How long the body of a request may take.")
    http_stall_timeout_s: Seconds = Field(60.0, description="How long a client may take nothing of its answer.")
    shed_lag_ms: float = Field(250.0, gt=0, description="Lateness of the event loop above which requests are refused with 503.")
    shed_queue_fraction: float = Field(
        0.9, gt=0, le=1, description="Fullness of the producer's queue above which events are refused with 503."
    )

    # Ingest
    ingest_max_body_bytes: int = Field(8 << 20, ge=1024, le=1 << 30, description="Largest request body of the bulk ingest.")
    ingest_max_record_bytes: int = Field(900_000, ge=1024, description="Largest event, key included; the brokers' limit bounds it too.")
    publish_queue_messages: int = Field(500_000, ge=1000, le=10_000_000, description="Messages a producer holds before it refuses more.")
    publish_queue_kbytes: int = Field(262_144, ge=1024, le=2_097_151, description="KiB a producer holds before it refuses more.")
    publish_timeout_s: Seconds = Field(30.0, description="How long brokers may take to acknowledge a message.")
    publish_linger_ms: float = Field(2.0, ge=0, le=1000, description="How long a producer waits to fill a batch.")

    # Sink
    sink_block_rows: int = Field(65_536, ge=1, le=1_048_576, description="Rows of one partition inserted at once, at most.")
    sink_block_bytes: int | None = Field(None, ge=1024, description="Bytes inserted at once; 32 MiB, or 1 MiB with the embedded broker.")
    sink_block_age_s: Seconds = Field(1.0, description="How long a row waits for its block to fill.")
    sink_insert_timeout_s: Seconds = Field(60.0, description="How long a ClickHouse server may be silent over a block or a statement.")
    sink_retry_max_s: Seconds = Field(30.0, description="Longest pause between tries when ClickHouse does not take a block.")

    sink_buffer_bytes: int = Field(256 << 20, ge=1 << 20, description="Bytes the sink holds before it stops reading.")
    sink_stall_s: Seconds = Field(30.0, description="How long reading may stand still, with more in Kafka, before the client is replaced.")
    sink_insert_threads: int = Field(2, ge=1, le=64, description="Blocks of different partitions inserted at once.")

    # Realtime
    batch_window_ms: float = Field(15.0, ge=1, le=1000, description="How long an event waits for its batch; 10 to 25 is usual.")
    batch_max_size: int = Field(256, ge=1, le=65_536, description="Events of one batch, at most.")
    ws_max_connections: int = Field(10_000, ge=1, description="WebSocket connections of one process.")
    ws_connections_per_principal: int = Field(1_000, ge=1, description="WebSocket connections of one user or key, of one process.")
    ws_buffer_bytes: int = Field(4 << 20, ge=65_536, description="What one slow client may hold back before its oldest events are dropped.")
    ws_budget_bytes: int = Field(512 << 20, ge=1 << 20, description="What all slow clients of one process may hold back together.")
    ws_subscriptions_per_principal: int = Field(10_000, ge=1, description="Subscriptions of one user or key, of one process.")
    ws_bytes_per_second_per_principal: int = Field(0, ge=0, description="Bytes a second sent to one user or key; 0 for no limit.")
    ws_replays: int = Field(8, ge=1, le=256, description="Subscriptions of one process that may catch up with the past at once.")
    ws_json_events_per_second: int = Field(2000, ge=1, description="Events a second of a connection that reads JSON text.")
    ws_auth_timeout_s: Seconds = Field(5.0, description="How long a connection may take to say who it is.")
    ws_stall_timeout_s: Seconds = Field(30.0, description="How long a client may take nothing before it is disconnected.")
    ws_ping_interval_s: Seconds = Field(20.0, description="Pause between keep-alive pings; two unanswered end the connection.")
    ws_allowed_origins: Origins = Field((), description="Origins of pages that may connect, beside the API's own; comma-separated.")
    enable_webtransport: bool = Field(True, description="Serve WebTransport.")
    wt_host: str = Field("127.0.0.1", description="Address WebTransport listens on.")
    wt_port: Port = Field(4433, description="UDP port of WebTransport.")
    wt_certificate_file: Path | None = Field(
        None, description="PEM file of the certificate chain of WebTransport; one of our own, for pages that know its hash, when not set."
    )
    wt_key_file: Path | None = Field(None, description="PEM file of its private key; in the certificate's file when not set.")
    wt_max_sessions: int = Field(1_000, ge=1, description="WebTransport sessions of one process.")
    wt_sessions_per_ip: int = Field(100, ge=1, description="WebTransport sessions of one address.")
    wt_unacknowledged_bytes: int = Field(
        8 << 20, ge=2 << 20, description="Bytes a WebTransport client may leave unacknowledged before its session is cut."
    )
    wt_stale_s: Seconds = Field(5.0, description="Age at which a frame that has not arrived is given up for newer ones, unless lossless.")
    wt_idle_timeout_s: Seconds = Field(30.0, description="How long a WebTransport client may be silent, answers to pings included.")
    wt_low_latency: bool = Field(
        False, description="Send without pacing: large frames arrive sooner where the network has room, and are lost where it has not."
    )
    wt_max_datagram_bytes: int = Field(
        1_350, ge=1_200, le=16_000, description="Largest UDP payload sent; 1200 goes through every tunnel, browsers take 1472."
    )

    # Exports
    export_jobs_per_principal: int = Field(4, ge=1, description="Exports of one person, with all keys, that may wait or run.")
    export_bytes_per_principal: int = Field(50 << 30, ge=1 << 20, description="Bytes of exports kept for one person, with all keys.")
    export_part_rows_min: int = Field(1_000, ge=1, le=1_000_000, description="Least rows of one file of an export that may be asked for.")
    export_expires_s: float = Field(7 * 86_400, ge=60, le=366 * 86_400, description="How long the files of an export are kept.")
    export_retry_s: float = Field(600, ge=0, description="How long an export waits for a ClickHouse that went away before it fails.")
    export_memory_bytes: int = Field(1 << 30, ge=64 << 20, description="Memory a query of an export may take in ClickHouse.")

    # Logs
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is written.")

    @field_validator("kafka_brokers")
    @classmethod
    def _brokers_have_ports(cls, value: str | None) -> str | None:
        for broker in (value or "").split(",") if value else ():
            host, _, port = broker.strip().rpartition(":")
            if not host or not port.isdigit() or int(port) > 65535:
                raise ValueError(f"{broker.strip()!r} is not host:port")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value and urlsplit(value.get_secret_value()).scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("expected a redis://, rediss:// or unix:// URL")
        return value

    @field_validator("ctrl_sign_sk_hex")
    @classmethod
    def _seed_is_hex(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else ""
        if value and (len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef")):
            raise ValueError("expected 64 hexadecimal digits")
        return value

    @field_validator("kafka_options")
    @classmethod
    def _options_are_an_object(cls, value: SecretStr) -> SecretStr:
        parse_kafka_options(value)
        return value

    @field_validator("jwt_previous_keys")
    @classmethod
    def _keys_are_long(cls, value: SecretStr) -> SecretStr:
        if any(len(key) < 32 for key in split_keys(value)):
            raise ValueError("each key has 32 characters or more")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            ip_network(text, strict=False)
        return value

    @field_validator("ws_allowed_origins", "cors_allowed_origins", "csp_connect_sources")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not re.fullmatch(r"(https?|wss?)://[A-Za-z0-9.\-_\[\]:*]+", text):
                raise ValueError(f"{text!r} is not an origin such as https://desk.example")
        return value

    @field_validator(
        "ws_allowed_origins", "cors_allowed_origins", "csp_connect_sources", "trusted_proxies", "train_schedulers", mode="before"
    )
    @classmethod
    def _split_list(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("mev_data_dir", "model_dir", "export_dir", "wt_certificate_file", "wt_key_file")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value else None

    @property
    def embedded(self) -> tuple[str, ...]:
        """Services that run inside the process."""
        services = {"kafka": self.kafka_brokers, "redis": self.redis_url, "clickhouse": self.clickhouse_host}
        return tuple(name for name, given in services.items() if not given)

    @property
    def effective_workers(self) -> int:
        """API processes that are started: one while any service is embedded."""
        return 1 if self.embedded else self.api_workers

    @property
    def effective_approvals_required(self) -> int:
        """People who have to agree before agents may do more."""
        return self.approvals_required or (1 if self.embedded else 2)

    @property
    def effective_rate_burst(self) -> int:
        """Requests of one principal at once."""
        return self.rate_limit_burst or 2 * self.rate_limit_per_second

    @property
    def effective_sink_block_bytes(self) -> int:
        """Bytes of a sink block: small with the embedded broker, which keeps only 5 MB a partition."""
        return self.sink_block_bytes or (32 << 20 if self.kafka_brokers else 1 << 20)


def split_keys(value: SecretStr) -> list[str]:
    """Return the keys of a comma-separated list."""
    return [key.strip() for key in value.get_secret_value().split(",") if key.strip()]


def parse_kafka_options(value: SecretStr) -> dict[str, str | int | float | bool]:
    """Return the librdkafka properties in `value`, a JSON object of plain values."""
    try:
        options = json.loads(value.get_secret_value())
    except ValueError:
        raise ValueError("expected a JSON object") from None
    if not isinstance(options, dict) or not all(isinstance(v, str | int | float | bool) for v in options.values()):
        raise ValueError("expected a JSON object of plain values")
    return options


def load(**overrides: object) -> Settings:
    """Read the environment; `overrides` by field name win over it.

    :raises InvalidSettingsError: naming every variable that is wrong.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = [f"{str(item['loc'][0]).upper()}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()]
        raise InvalidSettingsError("; ".join(wrong), errors=wrong) from None


def shown(settings: Settings) -> list[tuple[str, str, str, str]]:
    """Return (variable, value, origin, description) of every setting, secrets masked."""
    return [
        (
            name.upper(),
            _show(getattr(settings, name)),
            "set" if name in settings.model_fields_set else "default",
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _show(value: object) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, SecretStr):
        return MASKED if value.get_secret_value() not in {"", "{}"} else ""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
