"""Credentials in the headers of a request."""

import base64
import binascii
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

COOKIE = "mev_session"
SECURE_COOKIE = "__Host-mev_session"
_COOKIES = (SECURE_COOKIE.encode(), COOKIE.encode())


class CredentialSource(Enum):
    """Origin of a credential; browsers add the last two automatically."""

    HEADER = 0
    BASIC = 1
    COOKIE = 2


@dataclass(frozen=True, slots=True)
class Credential:
    """A key or token as sent."""

    value: bytes
    source: CredentialSource = CredentialSource.HEADER


def find(headers: Iterable[tuple[bytes, bytes]]) -> Credential | None:
    """Return the first key, bearer token or basic password in `headers`, or a session cookie."""
    cookie = None
    for name, value in headers:
        if name == b"x-api-key":
            return Credential(value)
        if name == b"authorization" and (credential := _authorization(value)):
            return credential
        if name == b"cookie" and cookie is None:
            cookie = _cookie(value)
    return cookie


def _authorization(value: bytes) -> Credential | None:
    scheme, _, rest = value.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return Credential(rest.strip())
        case b"basic":
            with contextlib.suppress(binascii.Error):
                return Credential(base64.b64decode(rest).partition(b":")[2], CredentialSource.BASIC)
    return None


def _cookie(header: bytes) -> Credential | None:
    for part in header.split(b";"):
        name, _, value = part.strip().partition(b"=")
        if name in _COOKIES:
            return Credential(value, CredentialSource.COOKIE)
    return None
