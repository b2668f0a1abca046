"""From settings to addresses and clients: what the server and the other commands both need."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import httpx

from mev.bus.embedded import Backlog
from mev.bus.kafka import Brokers
from mev.bus.publisher import Publisher
from mev.core.errors import InvalidInputError, UnavailableError
from mev.settings import Settings, load, parse_kafka_options
from mev.store import clickhouse
from mev.store.folder import DataFolder, NotRunningError
from mev.store.session import LoginSession, SessionFile

SINK_GROUP = "mev-sink"
_RENEW_BEFORE_S = 30
_MASTER_KEY_FILE = "master-api-key"
PATIENCE_S = 60.0
"""How long a command that waits puts up with being refused, or not answered at all."""
_ASK_AGAIN_S = 1.0
_NOT_NOW = frozenset({429, 502, 503, 504})
_ID_LENGTH = 36
_PART_OF_ID = re.compile(r"[0-9a-f]{8}[0-9a-f-]{0,27}")


class ApiError(UnavailableError):
    """The running system refused a request, or did not answer."""

    code = "api_error"


class NotNowError(ApiError):
    """The running system cannot answer now; a moment later it may."""

    code = "api_not_now"


class AmbiguousIdError(InvalidInputError):
    """Several ids begin like that."""

    code = "ambiguous_id"


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
        query_timeout_s=settings.query_timeout_s + settings.service_timeout_s,  # it ends a query by itself, and has to say so
        insert_timeout_s=settings.sink_insert_timeout_s,
    )


def ask_api(
    method: str,
    path: str,
    body: object = None,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    login: bool = True,
) -> httpx.Response:
    """Ask the running system's API, found by its runtime file, as whoever is logged in, else with this machine's key.

    `body` is sent as JSON; `login=False` sends no credential.

    :raises NotNowError: when it does not answer, or refuses for a moment.
    :raises ApiError: when it answers with another problem.
    """
    settings = load()
    folder = DataFolder(settings.mev_data_dir)
    api = folder.read_runtime().api
    with httpx.Client(base_url=api, timeout=settings.service_timeout_s * 3) as client:
        credential = _credential(settings, folder, client) if login else {}
        return _asked(client, method, path, {**(headers or {}), **credential}, json=body, params=params)


def poll(
    path: str, *, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None, patience_s: float = PATIENCE_S
) -> httpx.Response:
    """Get `path`, and ask again while the system cannot answer: because it is busy, or is just being started again.

    :raises NotNowError, NotRunningError: when it has not answered for `patience_s`.
    :raises ApiError: when it answers with another problem.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return ask_api("GET", path, params=params, headers=headers)
        except (NotNowError, NotRunningError) as error:
            pause_s = error.retry_after_s or _ASK_AGAIN_S
            if time.monotonic() + pause_s > deadline:
                raise
            time.sleep(pause_s)


def whole_id(given: str, path: str) -> str:
    """Return the id in the list at `path` that begins with `given`, 8 digits or more; where none does, `given` itself.

    :raises AmbiguousIdError: when several do.
    """
    if len(given) == _ID_LENGTH or not _PART_OF_ID.fullmatch(given):
        return given
    found = [one for one in _ids(path) if one.startswith(given)]
    if len(found) > 1:
        raise AmbiguousIdError(f"{len(found)} ids begin with {given}: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}")
    return found[0] if found else given


def _ids(path: str) -> Iterator[str]:
    page: dict[str, Any] = {"next_cursor": ""}
    while (cursor := page["next_cursor"]) is not None:
        page = ask_api("GET", path, params={"limit": "1000"} | ({"cursor": cursor} if cursor else {})).json()
        yield from (item["id"] for item in page["items"])


def _credential(settings: Settings, folder: DataFolder, client: httpx.Client) -> dict[str, str]:
    file = SessionFile(folder.path)
    if file.read() is None:
        return {"X-API-Key": master_key(settings, folder)}
    with file.locked():  # a refresh token works once: of commands that run at the same time, one exchanges it
        session = file.read()
        if session is not None and session.access_expires_s < time.time() + _RENEW_BEFORE_S:
            session = _renew(client, file, session)
    return {"Authorization": f"Bearer {session.access_token}"} if session else {"X-API-Key": master_key(settings, folder)}


def _renew(client: httpx.Client, file: SessionFile, session: LoginSession) -> LoginSession:
    answer = client.post("/api/auth/refresh", json={"refresh_token": session.refresh_token})
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        file.remove()
        raise ApiError(f"the login of {session.name} has ended; log in again with `mev login`")
    return keep_login(file, session.name, _checked(answer).json())


def keep_login(file: SessionFile, name: str, tokens: Mapping[str, Any]) -> LoginSession:
    """Write what a login answered to the session file."""
    session = LoginSession(
        name=name,
        access_token=tokens["access_token"],
        refresh_token=tokens["refresh_token"],
        access_expires_s=time.time() + tokens["expires_in_s"],
    )
    file.write(session)
    return session


def _asked(client: httpx.Client, method: str, path: str, headers: Mapping[str, str], **options: Any) -> httpx.Response:
    try:
        answer = client.request(method, path, headers=headers, **options)
    except httpx.HTTPError as error:
        raise NotNowError(f"the API does not answer: {error} ({method} {client.base_url.join(path)})") from None
    return _checked(answer)


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        try:
            detail = answer.json()["detail"]
        except (ValueError, KeyError, TypeError):
            detail = answer.reason_phrase
        wait = answer.headers.get("Retry-After", "")
        kind = NotNowError if answer.status_code in _NOT_NOW else ApiError
        raise kind(
            f"{detail} ({answer.request.method} {answer.request.url})",
            status_code=answer.status_code,
            retry_after_s=int(wait) if wait.isdecimal() else None,
        )
    return answer
