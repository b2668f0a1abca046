"""From settings to addresses and clients: what the server and the other commands both need."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx

from mev.bus.embedded import Backlog
from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.core.errors import UnavailableError
from mev.settings import Settings, load, parse_kafka_options
from mev.store import clickhouse
from mev.store.folder import DataFolder

SINK_GROUP = "mev-sink"
_MASTER_KEY_FILE = "master-api-key"


class ApiError(UnavailableError):
    """The running system refused a request, or did not answer."""

    code = "api_error"


def master_key(settings: Settings, folder: DataFolder) -> str:
    """Return the master key of the settings, or this machine's own, made once."""
    return settings.master_api_key.get_secret_value() if settings.master_api_key else folder.secret(_MASTER_KEY_FILE)


def find_brokers(settings: Settings, folder: DataFolder) -> Brokers:
    """Return the brokers of the settings, or the embedded one of the system that runs on `folder`.

    :raises NotRunningError: when neither is there.
    """
    if settings.kafka_brokers:
        return Brokers(servers=settings.kafka_brokers, options=parse_kafka_options(settings.kafka_options))
    runtime = folder.read_runtime()
    return Brokers(servers=runtime.kafka, embedded=runtime.kafka_embedded)


def open_publisher(settings: Settings, brokers: Brokers) -> Publisher:
    """Return a publisher to `brokers`; close it to wait for what is queued."""
    return Publisher(
        brokers,
        queue_messages=settings.publish_queue_messages,
        queue_kbytes=settings.publish_queue_kbytes,
        linger_ms=settings.publish_linger_ms,
        timeout_s=settings.publish_timeout_s,
        backlog=Backlog(brokers, SINK_GROUP, timeout_s=settings.service_timeout_s) if brokers.embedded else None,
    )


@contextmanager
def connect() -> Iterator[Publisher]:
    """Give a publisher to the brokers of the settings, or of the system that runs on this machine."""
    settings = load()
    with closing(open_publisher(settings, find_brokers(settings, DataFolder(settings.mev_data_dir)))) as publisher:
        yield publisher


def clickhouse_address(settings: Settings, folder: DataFolder) -> clickhouse.Address:
    """Return where ClickHouse is: the server of the settings, or the engine on a folder of ours."""
    if not settings.clickhouse_host:
        return clickhouse.Address(database=settings.clickhouse_database, path=folder.path / "clickhouse")
    return clickhouse.Address(
        database=settings.clickhouse_database,
        host=settings.clickhouse_host,
        port=settings.clickhouse_port,
        user=settings.clickhouse_user,
        password=settings.clickhouse_password.get_secret_value(),
        secure=settings.clickhouse_secure,
        timeout_s=settings.service_timeout_s,
    )


def ask_api(method: str, path: str, body: object = None) -> httpx.Response:
    """Ask the running system's API, found by its runtime file, with this machine's key; `body` is sent as JSON.

    :raises ApiError: when it does not answer, or answers with a problem.
    """
    settings = load()
    folder = DataFolder(settings.mev_data_dir)
    url = folder.read_runtime().api + path
    try:
        headers = {"X-API-Key": master_key(settings, folder)}
        answer = httpx.request(method, url, json=body, headers=headers, timeout=settings.service_timeout_s * 3)
    except httpx.HTTPError as error:
        raise ApiError(f"{url} does not answer: {error}") from None
    if answer.is_error:
        raise ApiError(f"{url}: {answer.json().get('detail', answer.reason_phrase)}")
    return answer
