"""Settings of paths, addresses, services and secrets."""

import json
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from mev.settings.types import FilePath, Port, Seconds, VariableGroup


class PathsVariables(VariableGroup):
    """Data folder and address of the API."""

    mev_data_dir: FilePath = Field(
        Path("~/.local/share/mev"), description="Folder of all data on this machine."
    )
    api_host: str = Field("127.0.0.1", description="Address the API listens on; 0.0.0.0 for all.")
    api_port: Port = Field(8000, description="Port of HTTP and WebSocket; 0 selects a free port.")
    api_workers: int = Field(
        4,
        ge=1,
        le=256,
        description=(
            "API processes; 1 while any service is embedded. From 2 on, a control process runs"
            " beside them."
        ),
    )
    model_dir: FilePath | None = Field(
        None, description="Folder of models; `models` in the data folder when not set."
    )
    export_dir: FilePath | None = Field(
        None,
        description="Folder of dataset export files; in the job folders when not set.",
    )


class ServicesVariables(VariableGroup):
    """Kafka, Redis and ClickHouse: embedded when not set."""

    kafka_brokers: str | None = Field(
        None, description="Kafka bootstrap servers, host:port,...; embedded when not set."
    )
    kafka_embedded_partition_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        le=1 << 40,
        description="Retention of the embedded broker per partition, in bytes.",
    )
    kafka_options: SecretStr = Field(
        SecretStr("{}"),
        description="Further librdkafka properties as a JSON object; they take precedence.",
    )
    kafka_tls: bool = Field(
        False, description="Use TLS to Kafka; implied by the files. The system's authorities count."
    )
    kafka_tls_ca_file: FilePath | None = Field(
        None, description="PEM of the authority that signed the brokers' certificates."
    )
    kafka_tls_cert_file: FilePath | None = Field(
        None, description="PEM of the certificate that is shown to the brokers."
    )
    kafka_tls_key_file: FilePath | None = Field(None, description="PEM of its private key.")
    kafka_tls_key_password: SecretStr = Field(
        SecretStr(""), description="Password of the private key."
    )
    kafka_sasl_mechanism: (
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None
    ) = Field(
        None, description="How to log in to Kafka: PLAIN, SCRAM-SHA-256 or -512, OAUTHBEARER."
    )
    kafka_sasl_username: str | None = Field(
        None, description="Kafka user; for OAUTHBEARER the client id."
    )
    kafka_sasl_password: SecretStr = Field(
        SecretStr(""),
        description="Password of the Kafka user; for OAUTHBEARER the client's secret.",
    )
    kafka_oauth_token_url: str | None = Field(
        None, pattern=r"^https?://", description="Address that issues tokens for OAUTHBEARER."
    )
    kafka_topic_partitions: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Partitions of each topic but control; the cluster's default when not set.",
    )
    kafka_topic_replication: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Replicas of each partition; the cluster's default when not set.",
    )
    kafka_topic_min_insync_replicas: int | None = Field(
        None,
        ge=1,
        le=100,
        description=(
            "Replicas that must have a message before it is acknowledged; the cluster's default"
            " when not set."
        ),
    )
    kafka_topic_retention_s: float | None = Field(
        None, gt=0, description="Time that Kafka keeps events; the cluster's default when not set."
    )
    redis_url: SecretStr | None = Field(
        None,
        description=(
            "redis://, rediss:// or unix:// URL, with user and password; of Sentinels or cluster"
            " nodes several hosts, comma-separated. Embedded when not set."
        ),
    )
    redis_mode: Literal["server", "sentinel", "cluster"] = Field(
        "server", description="What REDIS_URL names: a server, Sentinels, or nodes of a cluster."
    )
    redis_sentinel_service: str = Field(
        "mymaster", min_length=1, description="Name of the master that the Sentinels monitor."
    )
    redis_sentinel_username: str | None = Field(None, description="ACL user of the Sentinels.")
    redis_sentinel_password: SecretStr = Field(
        SecretStr(""), description="Password of the Sentinels; the servers' is in REDIS_URL."
    )
    redis_tls_ca_file: FilePath | None = Field(
        None, description="PEM of the authority that signed Redis's certificates (rediss://)."
    )
    redis_tls_cert_file: FilePath | None = Field(
        None, description="PEM of the certificate that is shown to Redis."
    )
    redis_tls_key_file: FilePath | None = Field(None, description="PEM of its private key.")
    clickhouse_host: str | None = Field(None, description="ClickHouse host; embedded when not set.")
    clickhouse_port: Port = Field(8123, description="ClickHouse HTTP port.")
    clickhouse_database: str = Field(
        "mev", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Database of all tables."
    )
    clickhouse_user: str = Field("default", description="ClickHouse user.")
    clickhouse_password: SecretStr = Field(SecretStr(""), description="ClickHouse password.")
    clickhouse_secure: bool = Field(False, description="Use TLS to ClickHouse.")
    child_probe_s: Seconds = Field(
        2.0,
        description="Interval between health checks of a child process (embedded Kafka, Redis).",
    )
    child_hang_s: Seconds = Field(
        10.0,
        description="Time without an answer after which a child process is killed and restarted.",
    )
    child_restart_max_s: Seconds = Field(
        10.0, description="Longest delay before a child process is restarted."
    )
    service_timeout_s: Seconds = Field(
        10.0, description="Timeout of a service at start and in health checks."
    )
    shutdown_timeout_s: Seconds = Field(20.0, description="Timeout of an orderly shutdown.")
    drain_s: float = Field(
        3.0,
        ge=0,
        le=3600,
        description=(
            "Time for which a worker that stops serves the connections that it has, and for which"
            " `mev up` with workers says that it is not ready before it stops."
        ),
    )

    health_write_check_s: Seconds = Field(
        10.0,
        description="Interval between the test writes to ClickHouse in the readiness check.",
    )
    query_timeout_s: Seconds = Field(10.0, description="Timeout of a query for a page.")
    trade_metrics_s: Seconds = Field(
        15.0,
        description=(
            "Interval at which the figures of trades in `/metrics` are read from ClickHouse; longer"
            " while a query takes more than a twentieth of it."
        ),
    )
    http_keep_alive_s: int = Field(
        75, ge=1, le=3600, description="Time an idle HTTP connection stays open."
    )

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

    @field_validator("redis_tls_ca_file", "redis_tls_cert_file", "redis_tls_key_file")
    @classmethod
    def _redis_has_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value and not _redis_url(info).startswith("rediss://"):
            raise ValueError("is used with a rediss:// REDIS_URL only")
        return value

    @field_validator("redis_mode")
    @classmethod
    def _redis_has_hosts(cls, value: str, info: ValidationInfo) -> str:
        if value != "server" and not _redis_url(info).startswith(("redis://", "rediss://")):
            raise ValueError(f"{value} needs a redis:// or rediss:// REDIS_URL")
        return value

    @field_validator("kafka_options")
    @classmethod
    def _options_are_an_object(cls, value: SecretStr) -> SecretStr:
        parse_kafka_options(value)
        return value

    @property
    def kafka_has_tls(self) -> bool:
        """Return whether connections to Kafka use TLS."""
        files = (self.kafka_tls_ca_file, self.kafka_tls_cert_file, self.kafka_tls_key_file)
        return self.kafka_tls or any(files)

    @property
    def embedded(self) -> tuple[str, ...]:
        """Return the services that run embedded."""
        services = {
            "kafka": self.kafka_brokers,
            "redis": self.redis_url,
            "clickhouse": self.clickhouse_host,
        }
        return tuple(name for name, given in services.items() if not given)


class ObjectStoreVariables(VariableGroup):
    """Object store that replicas share."""

    object_store: str | None = Field(
        None,
        description=(
            "Where replicas share models and exports: s3://bucket/prefix, or file:///folder for a"
            " shared file system. They stay in the data folder when not set."
        ),
    )
    aws_endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Address of an S3-compatible server; Amazon's when not set.",
    )
    object_store_tls_ca_file: FilePath | None = Field(
        None, description="PEM of the authority that signed the server's certificate."
    )
    aws_region: str = Field("us-east-1", description="Region of the bucket.")
    aws_access_key_id: str | None = Field(
        None, description="Access key of the bucket; of the machine's role when not set."
    )
    aws_secret_access_key: SecretStr | None = Field(None, description="Secret of the access key.")

    @field_validator("object_store_tls_ca_file")
    @classmethod
    def _server_has_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value and str(info.data.get("aws_endpoint_url") or "https:").startswith("http:"):
            raise ValueError("is used with a https:// AWS_ENDPOINT_URL only")
        return value

    @field_validator("object_store")
    @classmethod
    def _store_has_a_place(cls, value: str | None) -> str | None:
        place = urlsplit(value or "")
        is_bucket = place.scheme == "s3" and bool(place.netloc)
        is_folder = place.scheme == "file" and not place.netloc and len(place.path) > 1
        if value and (place.query or place.fragment or not (is_bucket or is_folder)):
            raise ValueError("expected s3://bucket/prefix or file:///folder")
        return value


class SecretsVariables(VariableGroup):
    """Keys and passwords."""

    jwt_secret_key: SecretStr | None = Field(
        None, min_length=32, description="Signing key of access tokens, 32 characters or more."
    )
    jwt_previous_keys: SecretStr = Field(
        SecretStr(""),
        description=(
            "Previous signing keys, comma-separated; their tokens stay valid until the key is"
            " removed here."
        ),
    )
    ctrl_sign_sk_hex: SecretStr | None = Field(
        None, description="Ed25519 seed that signs commands, 64 hexadecimal digits."
    )
    ctrl_pubkey_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Name of the signing key."
    )
    master_api_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Bootstrap API key; generated and stored in the data folder when not set.",
    )
    mev_agent_key: SecretStr | None = Field(
        None,
        description=(
            "API key that local agents enrol with; agents:enrol is enough. The master key when not"
            " set."
        ),
    )
    rpc_url: SecretStr | None = Field(
        None,
        description=(
            "Solana node that `mev capture` follows; set here, its key is not visible in the"
            " process list."
        ),
    )

    @field_validator("ctrl_sign_sk_hex")
    @classmethod
    def _seed_is_hex(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else ""
        if value and (len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef")):
            raise ValueError("expected 64 hexadecimal digits")
        return value

    @field_validator("jwt_previous_keys")
    @classmethod
    def _keys_are_long(cls, value: SecretStr) -> SecretStr:
        if any(len(key) < 32 for key in split_keys(value)):
            raise ValueError("each key has 32 characters or more")
        return value


class LogsVariables(VariableGroup):
    """Logs."""

    log_repeats_per_minute: int = Field(
        60,
        ge=1,
        le=1_000_000,
        description=(
            "Log records per minute from one place in the code, in `mev up` and `mev agent run`;"
            " the next record gives the number suppressed."
        ),
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level that is logged."
    )


def _redis_url(info: ValidationInfo) -> str:
    url: SecretStr | None = info.data.get("redis_url")
    return url.get_secret_value() if url else ""


def split_keys(value: SecretStr) -> list[str]:
    """Return the keys of a comma-separated list."""
    return [key.strip() for key in value.get_secret_value().split(",") if key.strip()]


def parse_kafka_options(value: SecretStr) -> dict[str, str | int | float | bool]:
    """Return the librdkafka properties in `value`, a JSON object of plain values."""
    try:
        options = json.loads(value.get_secret_value())
    except ValueError:
        raise ValueError("expected a JSON object") from None
    if not isinstance(options, dict) or not all(
        isinstance(v, str | int | float | bool) for v in options.values()
    ):
        raise ValueError("expected a JSON object of plain values")
    return options
