"""Tokens: signed access tokens that say who one is for minutes, and session tokens that are exchanged for them.

Both are made from one key and accepted from the keys before it, so that the key can be replaced without ending a session. What is
kept of a session holds nothing that could be sent as its token.
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
from mev.auth.model import Kind, Principal, Role

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
    """What an access token says."""

    user: str
    role: Role
    session: str
    authenticated_at_s: float
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class SessionToken:
    """A refresh token or browser session that is genuine; whether it is still good, the store knows."""

    session: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a ticket says: whose it is, by what that was shown, and until when it opens a stream."""

    principal: str
    name: str
    kind: Kind
    credential: str
    expires_at_s: float


class Keyring:
    """Signs with the first of `keys` and accepts all of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = {_key_id(key): key for key in keys}
        self._current = _key_id(keys[0])

    def access_token(self, user: str, role: Role, session: str, *, authenticated_at_s: float, lifetime_s: float) -> str:
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
        return jwt.encode(claims, self._keys[self._current], ALGORITHM, headers={"kid": self._current})

    def read_access_token(self, token: str) -> Claims:
        """Return what a genuine, current access token says.

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
            # The algorithm is ours to choose, never the token's; the key id only selects among our keys.
            key = self._keys.get(str(jwt.get_unverified_header(token).get("kid")))
            if key is None:
                raise UnauthorizedError("the access token is signed with a key that is not in use; log in again")
            options: Any = {"require": required}
            return jwt.decode(token, key, [ALGORITHM], audience=audience, issuer=ISSUER, leeway=_LEEWAY_S, options=options)
        except jwt.ExpiredSignatureError:
            raise UnauthorizedError("the access token has expired; get another with the refresh token") from None
        except (jwt.InvalidTokenError, ValueError, TypeError):
            raise UnauthorizedError("the access token is not valid; log in again") from None

    def ticket(self, principal: Principal, *, lifetime_s: float) -> str:
        """Return what opens the streams of `principal`, and no longer than what it was shown with."""
        claims = {
            "iss": ISSUER,
            "aud": _TICKET_AUDIENCE,
            "sub": principal.id,
            "name": principal.name,
            "kind": principal.kind.value,
            "of": principal.credential,
            "exp": min(time.time() + lifetime_s, principal.expires_at_s or float("inf")),
        }
        return TICKET_PREFIX + jwt.encode(claims, self._keys[self._current], ALGORITHM, headers={"kid": self._current})

    def read_ticket(self, text: str) -> Ticket:
        """Return what a genuine, current ticket says.

        :raises UnauthorizedError: for any other text.
        """
        claims = self._read(text.removeprefix(TICKET_PREFIX), _TICKET_AUDIENCE, _TICKET_REQUIRED)
        return Ticket(
            principal=claims["sub"],
            name=str(claims["name"]),
            kind=Kind(claims["kind"]),
            credential=str(claims["of"]),
            expires_at_s=float(claims["exp"]),
        )

    def session_token(self, prefix: str, session: str, generation: int) -> str:
        """Return the token of a session's `generation`: good for one exchange."""
        return f"{prefix}{session}_{generation}_{self._mac(self._current, prefix, session, generation)}"

    def read_session_token(self, prefix: str, token: str) -> SessionToken:
        """Return what a genuine session token names.

        :raises SessionEndedError: for any other text.
        """
        session, _, rest = token.removeprefix(prefix).partition("_")
        number, _, mac = rest.partition("_")
        if token.startswith(prefix) and number.isascii() and number.isdigit() and len(number) < 10:
            given = mac.encode(errors="replace")
            genuine = [hmac.compare_digest(self._mac(key, prefix, session, int(number)).encode(), given) for key in self._keys]
            if any(genuine):
                return SessionToken(session, int(number))
        raise SessionEndedError("the session is not known; log in again")

    def csrf_token(self, session: str) -> str:
        """Return the token that a browser session sends with what changes something: another site cannot read it."""
        return self._mac(self._current, "csrf", session, 0)

    def is_csrf_token(self, session: str, given: str) -> bool:
        """Say whether `given` belongs to `session`."""
        matches = [hmac.compare_digest(self._mac(key, "csrf", session, 0).encode(), given.encode(errors="replace")) for key in self._keys]
        return any(matches)

    def _mac(self, key_id: str, purpose: str, session: str, generation: int) -> str:
        message = f"mev-session/{purpose}/{session}/{generation}".encode(errors="replace")
        return hmac.new(self._keys[key_id].encode(), message, hashlib.sha256).hexdigest()


def new_session_id() -> str:
    """Return a new session's id."""
    return secrets.token_hex(12)


def _key_id(key: str) -> str:
    return hashlib.sha256(b"mev key id" + key.encode()).hexdigest()[:12]
