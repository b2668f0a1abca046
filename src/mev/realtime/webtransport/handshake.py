"""The HTTP/3 request that opens a session: checked, and answered with 200 or a problem."""

from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from aioquic.h3.events import Headers

from mev.auth.browser import Origins
from mev.auth.credentials import Credential, CredentialSource, find
from mev.core import asgi
from mev.core.errors import MevError
from mev.realtime.errors import BadConnectError, ForbiddenOriginError, UnknownWebTransportPathError

PATH = "/api/realtime/wt"
LOCALHOST = "localhost"
_LOOPBACK = frozenset({LOCALHOST, "127.0.0.1", "::1"})
ACCEPTED: Headers = [(b":status", b"200"), (b"sec-webtransport-http3-draft", b"draft02")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """A valid request for a session; its credential, if any, is not checked yet."""

    credential: Credential | None
    headers: Headers
    """In ASGI form."""


def read(headers: Headers, origins: Origins, path: str = PATH) -> Connect:
    """Return a checked request.

    :raises MevError: the error to answer with if it is invalid.
    """
    pseudo = {name: value.decode("latin-1") for name, value in headers if name.startswith(b":")}
    fields = [(name, value) for name, value in headers if not name.startswith(b":")]
    asked, _, query = pseudo.get(b":path", "").partition("?")
    if asked != path:
        raise UnknownWebTransportPathError(f"there is no WebTransport at {asked[:80]}; try {path}")
    if (pseudo[b":method"], pseudo.get(b":protocol"), pseudo.get(b":scheme")) != (
        "CONNECT",
        "webtransport",
        "https",
    ):
        raise BadConnectError(
            "a session is opened by CONNECT with :protocol webtransport and :scheme https"
        )
    authority = pseudo[b":authority"]
    _check_origin(fields, authority, origins)
    return Connect(
        credential=_credential(fields, query),
        headers=[(b"host", authority.encode("latin-1")), *fields],
    )


def refusal(error: MevError) -> tuple[Headers, bytes]:
    """Return the headers and the body of an error response."""
    body = asgi.problem_body(error)
    fixed = [
        (b":status", b"%d" % error.status),
        (b"content-type", asgi.PROBLEM_JSON.encode()),
        (b"content-length", b"%d" % len(body)),
    ]
    return [
        *fixed,
        *((name, value) for name, value in asgi.problem_headers(error) if name != b"connection"),
    ], body


def _credential(fields: Headers, query: str) -> Credential | None:
    # Browsers send no cookie here, and pages cannot add headers: they use tickets or `auth`.
    found = find(fields)
    if found is not None and found.source is CredentialSource.HEADER:
        return found
    try:
        ticket = parse_qs(query, max_num_fields=16).get("ticket")
    except ValueError:
        raise BadConnectError("the query has too many fields; ticket is all there is") from None
    return Credential(ticket[0].encode()) if ticket else None


def _check_origin(fields: Headers, authority: str, origins: Origins) -> None:
    # The API's pages have its host name and another port, unless a proxy serves both on one port.
    given = next((value.decode("latin-1") for name, value in fields if name == b"origin"), None)
    if given is None or origins.listed(given):
        return
    host = _host(given)
    if not host or host != _host(f"//{authority}"):
        raise ForbiddenOriginError(f"pages of {given[:80]} may not connect here")


def _host(url: str) -> str:
    try:
        host = (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
    return LOCALHOST if host in _LOOPBACK else host
