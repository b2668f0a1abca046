"""The master key: whoever has it may do everything."""

import base64
import binascii
import contextlib
import hashlib
import hmac
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request

from mev.core.errors import MevError


class UnauthorizedError(MevError):
    """The request does not say who it is, or says it wrong."""

    code = "unauthorized"
    status = 401


class MasterKey:
    """Compares keys in constant time."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def matches(self, key: str | bytes) -> bool:
        """Say whether `key` is the master key."""
        given = key.encode(errors="surrogateescape") if isinstance(key, str) else key
        return hmac.compare_digest(hashlib.sha256(given).digest(), self._digest)

    def check_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Accept ASGI `headers` that carry the key: ``X-API-Key``, a bearer token, or the password of basic authentication.

        :raises UnauthorizedError: otherwise.
        """
        given = next((key for name, value in headers if (key := _key_in(name, value)) is not None), None)
        if given is None:
            raise UnauthorizedError("send your key in the X-API-Key header; `mev config key` prints the one of this machine")
        if not self.matches(given):
            raise UnauthorizedError("this key is not known; `mev config key` prints the one of this machine")


def _key_in(name: bytes, value: bytes) -> bytes | None:
    if name == b"x-api-key":
        return value
    if name != b"authorization":
        return None
    scheme, _, rest = value.partition(b" ")
    if scheme.lower() == b"basic":
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(rest).partition(b":")[2]
    return rest if scheme.lower() == b"bearer" else None


async def _authenticated(request: Request) -> None:
    key: MasterKey = request.app.state.master_key
    key.check_headers(request.scope["headers"])


async def _authenticated_browser(request: Request) -> None:
    try:
        await _authenticated(request)
    except UnauthorizedError as error:
        raise UnauthorizedError(error.detail, challenge='Basic realm="any name, and your API key as password"') from None


Authenticated = Annotated[None, Depends(_authenticated)]
# For pages people open by hand: the browser asks for the key.
AuthenticatedBrowser = Annotated[None, Depends(_authenticated_browser)]
