"""Tokens: signed short-lived access tokens, and session tokens that are exchanged for them.

Both are signed with the newest key and accepted with older ones, so that key rotation ends no
session. The stored session does not contain its token.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from mev.auth.errors import SessionEndedError, UnauthorizedError
from mev.auth.model import CredentialKind, Principal, Role

ALGORITHM = "HS256"
ISSUER = "mev"
AUDIENCE = "mev-api"
REFRESH_PREFIX = "mevr_"
BROWSER_PREFIX = "mevs_"
TICKET_PREFIX = "mevt_"
_TICKET_AUDIENCE = "mev-stream"
_TICKET_REQUIRED = ["iss", "aud", "kind", "of", "name", "sub", "exp"]
_REQUIRED = ["iss", "aud", "sub", "sid", "role", "iat", "nbf", "exp", "jti", "auth_time"]
_LEEWAY_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Claims of an access token."""

    user: str
    role: Role
    session: str
    authenticated_at_s: float
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class SessionToken:
    """A session token with a valid signature; the store knows whether the session is open."""

    session: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketClaims:
    """Claims of a stream ticket: principal, credential and expiry."""

    principal: str
    name: str
    kind: CredentialKind
    credential: str
    expires_at_s: float


class Keyring:
    """Signs with the first of `keys` and accepts all of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = {_key_id(key): key for key in keys}
        self._current = _key_id(keys[0])

    def access_token(
        self, user: str, role: Role, session: str, *, authenticated_at_s: float, lifetime_s: float
    ) -> str:
        """Return an access token."""
        now = time.time()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user,
            "role": role.value,
            "sid": session,
            "auth_time": authenticated_at_s,
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now + lifetime_s),
            "jti": secrets.token_urlsafe(12),
        }
        return jwt.encode(
            claims, self._keys[self._current], ALGORITHM, headers={"kid": self._current}
        )

    def read_access_token(self, token: str) -> Claims:
        """Return the claims of a valid access token.

        :raises UnauthorizedError: for any other text.
        """
        claims = self._read(token, AUDIENCE, _REQUIRED)
        try:
            return Claims(
                user=claims["sub"],
                role=Role(claims["role"]),
                session=str(claims["sid"]),
                authenticated_at_s=float(claims["auth_time"]),
                expires_at_s=float(claims["exp"]),
            )
        except (ValueError, TypeError):
            raise UnauthorizedError("the access token is not valid; log in again") from None

    def _read(self, token: str, audience: str, required: list[str]) -> dict[str, Any]:
        try:
            # The algorithm is fixed, never taken from the token; the key id only selects one of our
            # keys.
            key = self._keys.get(str(jwt.get_unverified_header(token).get("kid")))
            if key is None:
                raise UnauthorizedError(
                    "the access token is signed with a key that is not in use; log in again"
                )
            options: Any = {"require": required}
            return jwt.decode(
                token,
                key,
                [ALGORITHM],
                audience=audience,
                issuer=ISSUER,
                leeway=_LEEWAY_S,
                options=options,
            )
        except jwt.ExpiredSignatureError:
            raise UnauthorizedError(
                "the access token has expired; get another with the refresh token"
            ) from None
        except (jwt.InvalidTokenError, ValueError, TypeError):
            raise UnauthorizedError("the access token is not valid; log in again") from None

    def ticket(self, principal: Principal, *, lifetime_s: float) -> str:
        """Return a stream ticket of `principal`; it expires with its credential at the latest."""
        claims = {
            "iss": ISSUER,
            "aud": _TICKET_AUDIENCE,
            "sub": principal.id,
            "name": principal.name,
            "kind": principal.kind.value,
            "of": principal.credential,
            "exp": min(time.time() + lifetime_s, principal.expires_at_s or float("inf")),
        }
        return TICKET_PREFIX + jwt.encode(
            claims, self._keys[self._current], ALGORITHM, headers={"kid": self._current}
        )

    def read_ticket(self, text: str) -> TicketClaims:
        """Return the claims of a valid ticket.

        :raises UnauthorizedError: for any other text.
        """
        claims = self._read(text.removeprefix(TICKET_PREFIX), _TICKET_AUDIENCE, _TICKET_REQUIRED)
        return TicketClaims(
            principal=claims["sub"],
            name=str(claims["name"]),
            kind=CredentialKind(claims["kind"]),
            credential=str(claims["of"]),
            expires_at_s=float(claims["exp"]),
        )

    def session_token(self, prefix: str, session: str, generation: int) -> str:
        """Return the token of a session's `generation`, valid for one exchange."""
        return (
            f"{prefix}{session}_{generation}_"
            f"{self._mac(self._current, prefix, session, generation)}"
        )

    def read_session_token(self, prefix: str, token: str) -> SessionToken:
        """Return the session of a token with a valid signature.

        :raises SessionEndedError: for any other text.
        """
        session, _, rest = token.removeprefix(prefix).partition("_")
        number, _, mac = rest.partition("_")
        if token.startswith(prefix) and number.isascii() and number.isdigit() and len(number) < 10:
            given = mac.encode(errors="replace")
            genuine = [
                hmac.compare_digest(self._mac(key, prefix, session, int(number)).encode(), given)
                for key in self._keys
            ]
            if any(genuine):
                return SessionToken(session, int(number))
        raise SessionEndedError("the session is not known; log in again")

    def csrf_token(self, session: str) -> str:
        """Return the CSRF token of a browser session, required for writes."""
        return self._mac(self._current, "csrf", session, 0)

    def is_csrf_token(self, session: str, given: str) -> bool:
        """Return whether `given` is the CSRF token of `session`."""
        matches = [
            hmac.compare_digest(
                self._mac(key, "csrf", session, 0).encode(), given.encode(errors="replace")
            )
            for key in self._keys
        ]
        return any(matches)

    def _mac(self, key_id: str, purpose: str, session: str, generation: int) -> str:
        message = f"mev-session/{purpose}/{session}/{generation}".encode(errors="replace")
        return hmac.new(self._keys[key_id].encode(), message, hashlib.sha256).hexdigest()


def new_session_id() -> str:
    """Return a new session id."""
    return secrets.token_hex(12)


def _key_id(key: str) -> str:
    return hashlib.sha256(b"mev key id" + key.encode()).hexdigest()[:12]
