"""HTTP client of the local system's API, shared by the commands."""

import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from mev.cli.session_file import LoginSession, SessionFile
from mev.core.errors import InvalidInputError, MevError, UnavailableError
from mev.core.ids import new_id
from mev.settings import Settings, load, load_usable
from mev.store.folder import DataFolder, NotRunningError, Runtime, master_key

_RENEW_BEFORE_S = 30
PATIENCE_S = 60.0
"""How long a waiting command retries while the API refuses or does not answer."""
_ASK_AGAIN_S = 1.0
_SOCKET_TIMEOUT_S = 1.0
_LONGEST_STOP_PAUSE_S = 2.0
_STOP_LOCK_WAIT_S = 2.0
_NOT_NOW = frozenset({429, 502, 503, 504})
_TRY_WITH_KEY = _NOT_NOW | {401, 500}
_ID_LENGTH = 36
_PART_OF_ID = re.compile(r"[0-9a-f]{8}[0-9a-f-]{0,27}")


class ApiError(UnavailableError):
    """The API refused a request or did not answer."""

    code = "api_error"


class NotNowError(ApiError):
    """The API is temporarily unavailable."""

    code = "api_not_now"


class AmbiguousIdError(InvalidInputError):
    """Several ids have this prefix."""

    code = "ambiguous_id"


def ask_api(
    method: str,
    path: str,
    body: object = None,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    login: bool = True,
    settings: Settings | None = None,
) -> httpx.Response:
    """Call the API of the local system, found by its runtime file.

    The caller is the logged-in user, otherwise this machine's master key. `body` is sent as JSON;
    `login=False` sends no credential.

    :raises NotNowError: when the API does not answer or is temporarily unavailable.
    :raises ApiError: when it answers with another problem.
    """
    settings = settings or load()
    folder = DataFolder(settings.mev_data_dir)
    with _client(folder.read_runtime(), settings.service_timeout_s * 3) as client:
        credential = _credential(settings, folder, client) if login else {}
        return _asked(
            client, method, path, {**(headers or {}), **credential}, json=body, params=params
        )


def ask_readiness() -> dict[str, Any]:
    """Return the readiness document of the local system, ready or not."""
    settings = load()
    with _client(
        DataFolder(settings.mev_data_dir).read_runtime(), settings.service_timeout_s * 3
    ) as client:
        answer = _sent(client, "GET", "/api/health/ready", {})
        document: dict[str, Any] = (
            answer.json() if "dependencies" in answer.text else _checked(answer).json()
        )
        return document


def send_stop(
    path: str, body: object, say: Callable[[str], None], *, patience_s: float = PATIENCE_S
) -> httpx.Response:
    """Post a stop; invalid settings, an unusable login or a busy system do not prevent it.

    If the login fails, this machine's master key is used; if the API does not answer, the request
    is retried for `patience_s` with one idempotency key. `say` receives each problem.

    :raises NotNowError, NotRunningError: when there was no answer for `patience_s`; it may have
        been sent.
    :raises ApiError: when the API refuses it.
    """
    settings, wrong = load_usable()
    if wrong:
        say(f"{wrong}; the stop is sent all the same")
    folder, headers = DataFolder(settings.mev_data_dir), {"Idempotency-Key": new_id()}
    has_login, deadline = SessionFile(folder.path).read() is not None, time.monotonic() + patience_s
    while True:
        try:
            with _client(folder.read_runtime(), settings.service_timeout_s) as client:
                credential = _stop_credential(settings, folder, client, say, has_login=has_login)
                return _asked(client, "POST", path, headers | credential, json=body)
        except (ApiError, NotRunningError) as error:
            if has_login and error.fields.get("status_code") in _TRY_WITH_KEY:
                say(f"{error.detail}; sending with this machine's key")
                has_login = False
                continue
            pause_s = min(error.retry_after_s or _ASK_AGAIN_S, _LONGEST_STOP_PAUSE_S)
            if (
                not isinstance(error, NotNowError | NotRunningError)
                or time.monotonic() + pause_s > deadline
            ):
                raise
            say(f"not sent yet: {error.detail}; trying again")
            time.sleep(pause_s)


def _stop_credential(
    settings: Settings,
    folder: DataFolder,
    client: httpx.Client,
    say: Callable[[str], None],
    *,
    has_login: bool,
) -> dict[str, str]:
    try:
        if has_login:
            return _credential(settings, folder, client, lock_wait_s=_STOP_LOCK_WAIT_S)
    except (MevError, OSError) as error:
        say(
            f"{error.detail if isinstance(error, MevError) else error}; sending with this "
            "machine's key"
        )
    try:
        return {"X-API-Key": master_key(settings, folder)}
    except OSError as error:
        raise ApiError(
            f"this machine's key cannot be read: {error}; `mev login`, or set MASTER_API_KEY"
        ) from None


def poll(
    path: str,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    patience_s: float = PATIENCE_S,
    settings: Settings | None = None,
) -> httpx.Response:
    """Get `path`; retry while the system is busy or restarting.

    :raises NotNowError, NotRunningError: when there was no answer for `patience_s`.
    :raises ApiError: when the API answers with another problem.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return ask_api("GET", path, params=params, headers=headers, settings=settings)
        except (NotNowError, NotRunningError) as error:
            pause_s = error.retry_after_s or _ASK_AGAIN_S
            if time.monotonic() + pause_s > deadline:
                raise
            time.sleep(pause_s)


def whole_id(given: str, path: str) -> str:
    """Return the id with prefix `given` (8 digits or more) in the list at `path`, else `given`.

    :raises AmbiguousIdError: when several ids have this prefix.
    """
    if len(given) == _ID_LENGTH or not _PART_OF_ID.fullmatch(given):
        return given
    found = [one["id"] for one in ask_pages(path) if one["id"].startswith(given)]
    if len(found) > 1:
        raise AmbiguousIdError(
            f"{len(found)} ids begin with {given}: "
            f"{', '.join(found[:5])}{', ...' if len(found) > 5 else ''}"
        )
    return found[0] if found else given


def ask_pages(path: str, **params: str) -> Iterator[dict[str, Any]]:
    """Yield the items of all pages of a list."""
    page: dict[str, Any] = {"next_cursor": ""}
    while (cursor := page["next_cursor"]) is not None:
        page = ask_api(
            "GET", path, params=params | {"limit": "1000"} | ({"cursor": cursor} if cursor else {})
        ).json()
        yield from page["items"]


def _credential(
    settings: Settings, folder: DataFolder, client: httpx.Client, *, lock_wait_s: float = PATIENCE_S
) -> dict[str, str]:
    file = SessionFile(folder.path)
    if file.read() is None:
        return {"X-API-Key": master_key(settings, folder)}
    # A refresh token is valid once: of concurrent commands, one exchanges it.
    with file.locked(wait_s=lock_wait_s):
        session = file.read()
        if session is not None and session.access_expires_s < time.time() + _RENEW_BEFORE_S:
            session = _renew(client, file, session)
    return (
        {"Authorization": f"Bearer {session.access_token}"}
        if session
        else {"X-API-Key": master_key(settings, folder)}
    )


def _renew(client: httpx.Client, file: SessionFile, session: LoginSession) -> LoginSession:
    answer = _sent(
        client, "POST", "/api/auth/refresh", {}, json={"refresh_token": session.refresh_token}
    )
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        file.remove()
        raise ApiError(f"the login of {session.name} has ended; log in again with `mev login`")
    return keep_login(file, session.name, _checked(answer).json())


def keep_login(file: SessionFile, name: str, tokens: Mapping[str, Any]) -> LoginSession:
    """Write the tokens of a login to the session file."""
    session = LoginSession(
        name=name,
        access_token=tokens["access_token"],
        refresh_token=tokens["refresh_token"],
        access_expires_s=time.time() + tokens["expires_in_s"],
    )
    file.write(session)
    return session


def _client(runtime: Runtime, timeout_s: float) -> httpx.Client:
    # The Unix socket also accepts connections when the TCP connection limit is reached.
    transport = (
        httpx.HTTPTransport(uds=runtime.socket, verify=False) if _connects(runtime.socket) else None
    )
    is_tls = runtime.api.startswith("https:")  # without TLS, no certificates are loaded
    return httpx.Client(base_url=runtime.api, transport=transport, timeout=timeout_s, verify=is_tls)


def _connects(path: str | None) -> bool:
    """Return whether a server accepts connections on the Unix socket at `path`."""
    if path is None:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_SOCKET_TIMEOUT_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _asked(
    client: httpx.Client, method: str, path: str, headers: Mapping[str, str], **options: Any
) -> httpx.Response:
    return _checked(_sent(client, method, path, headers, **options))


def _sent(
    client: httpx.Client, method: str, path: str, headers: Mapping[str, str], **options: Any
) -> httpx.Response:
    try:
        return client.request(method, path, headers=headers, **options)
    except httpx.HTTPError as error:
        raise NotNowError(
            f"the API does not answer: {error} ({method} {client.base_url.join(path)})"
        ) from None


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        try:
            problem = answer.json()
            detail, code = problem["detail"], problem.get("code")
        except (ValueError, KeyError, TypeError):
            detail, code = answer.reason_phrase, None
        wait = answer.headers.get("Retry-After", "")
        kind = NotNowError if answer.status_code in _NOT_NOW else ApiError
        raise kind(
            f"{detail} ({answer.request.method} {answer.request.url})",
            status_code=answer.status_code,
            problem_code=code,
            retry_after_s=int(wait) if wait.isdecimal() else None,
        )
    return answer
