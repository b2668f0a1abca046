import orjson
import pytest

from mev.auth.browser import Origins
from mev.auth.credentials import Credential, CredentialSource
from mev.core.errors import MevError
from mev.realtime.batch import Encoding
from mev.realtime.errors import (
    ForbiddenOriginError,
    StreamUnauthorizedError,
    TooManyConnectionsError,
    UpgradeRequiredError,
)
from mev.realtime.websocket import handshake
from mev.realtime.websocket.handshake import Policy, Upgrade, negotiate, parse

POLICY = Policy(path="/ws", origins=Origins(["https://desk.example"]))
HEADERS: dict[str, str | None] = {
    "host": "mev.example:8000",
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    # Key and answer are the example of RFC 6455, section 1.3.
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def head(**changes: str | None) -> bytes:
    headers = HEADERS | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [
        f"{headers.pop('method', 'GET')} {headers.pop('target', '/ws')} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items() if value is not None),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def negotiated(**changes: str | None) -> Upgrade:
    return negotiate(parse(head(**changes)), POLICY)


def test_the_answer_is_that_of_the_rfc() -> None:
    upgrade = negotiated()
    assert upgrade == Upgrade(accept=ACCEPT, encoding=Encoding.JSON, credential=None)
    assert (
        handshake.accepted(upgrade)
        == "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection:"
        f" Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n".encode()
    )


def test_the_sub_protocol_selects_the_encoding() -> None:
    upgrade = negotiated(sec_websocket_protocol="chat, mev.v1.protobuf")
    assert upgrade.encoding is Encoding.PROTOBUF
    assert b"\r\nSec-WebSocket-Protocol: mev.v1.protobuf\r\n" in handshake.accepted(upgrade)
    assert negotiated(sec_websocket_protocol="chat").encoding is Encoding.JSON


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"connection": "keep-alive, Upgrade"}, id="as Firefox sends it"),
        pytest.param({"connection": "UPGRADE"}, id="any case"),
        pytest.param({"target": "/ws?a=b"}, id="with a query"),
        pytest.param({"origin": "http://mev.example:8000"}, id="a page of this host"),
        pytest.param({"origin": "https://desk.example"}, id="a page on the list"),
    ],
)
def test_is_accepted(changes: dict[str, str]) -> None:
    assert negotiated(**changes).accept == ACCEPT


@pytest.mark.parametrize(
    "changes",
    [
        {"x_api_key": "secret"},
        {"authorization": "Bearer secret"},
        {"authorization": "bearer  secret"},
    ],
)
def test_a_key_in_the_headers_is_found(changes: dict[str, str]) -> None:
    assert negotiated(**changes).credential == Credential(b"secret")


def test_a_cookie_counts_only_from_a_page_that_may_connect() -> None:
    own = negotiated(cookie="mev_session=s", origin="http://mev.example:8000")
    assert own.credential == Credential(b"s", CredentialSource.COOKIE)
    for origin in (None, "https://evil.example", ""):
        with pytest.raises(ForbiddenOriginError):
            negotiated(cookie="mev_session=s", origin=origin)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        pytest.param({"target": "/other"}, 404, id="path"),
        pytest.param({"target": "/ws/"}, 404, id="path with more"),
        pytest.param({"method": "POST"}, 400, id="method"),
        pytest.param({"connection": "close"}, 400, id="connection"),
        pytest.param({"sec_websocket_version": "8"}, 426, id="version"),
        pytest.param({"sec_websocket_version": None}, 426, id="no version"),
        pytest.param({"sec_websocket_key": None}, 400, id="no nonce"),
        pytest.param({"sec_websocket_key": "AAAA"}, 400, id="short nonce"),
        pytest.param({"sec_websocket_key": "?"}, 400, id="no base64"),
        pytest.param({"sec_websocket_key": "é"}, 400, id="no ASCII"),
        pytest.param({"origin": "https://evil.example"}, 403, id="origin"),
        pytest.param({"origin": "http://mev.example"}, 403, id="origin of another port"),
        pytest.param({"origin": "null"}, 403, id="opaque origin"),
        pytest.param({"origin": "http://[", "host": "["}, 403, id="broken origin"),
        pytest.param({"origin": "x", "host": None}, 403, id="no host"),
    ],
)
def test_is_refused(changes: dict[str, str | None], status: int) -> None:
    with pytest.raises(MevError) as caught:
        negotiated(**changes)
    assert caught.value.status == status


def test_repeated_headers_are_joined() -> None:
    request = parse(head()[:-2] + b"X-Api-Key: secret\r\nx-api-key: secret\r\n\r\n")
    assert request.headers["x-api-key"] == "secret, secret"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (StreamUnauthorizedError("no"), b"WWW-Authenticate: Bearer"),
        (UpgradeRequiredError("no"), b"Sec-WebSocket-Version: 13"),
        (TooManyConnectionsError("no", retry_after_s=5), b"Retry-After: 5"),
    ],
)
def test_a_refusal_is_a_problem_object(error: MevError, line: bytes) -> None:
    top, _, body = handshake.refused(error).partition(b"\r\n\r\n")
    lines = top.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 %d " % error.status)
    assert line in lines
    assert b"Content-Length: %d" % len(body) in lines
    assert orjson.loads(body) == error.problem()
