"""Mapping of credentials to principals, with a short cache.

Used by the HTTP application and the WebSocket service. A credential is looked up again after a few
seconds, which limits how long a revocation takes; while Redis is unavailable, verified credentials
stay valid for a limited time.
"""

import hashlib
import hmac
import time
from dataclasses import dataclass, replace

from mev.auth import keys
from mev.auth.credentials import Credential, CredentialSource
from mev.auth.errors import AccountsUnavailableError, SessionEndedError, UnauthorizedError
from mev.auth.keys import ApiKeys
from mev.auth.model import (
    MASTER,
    ROLES,
    CredentialKind,
    Permission,
    Principal,
    Role,
    SessionRecord,
    User,
)
from mev.auth.service import unavailable
from mev.auth.store import AccountStore
from mev.auth.tokens import BROWSER_PREFIX, REFRESH_PREFIX, TICKET_PREFIX, Claims, Keyring
from mev.store.redis import RedisUnavailableError

_LONGEST = 4096
NO_CREDENTIAL = (
    "a credential is required: X-API-Key, or Authorization: Bearer; `mev config key` prints "
    "the master key of this machine"
)


@dataclass(slots=True)
class _Seen:
    """A verified credential and its time limits."""

    principal: Principal
    fresh_until: float
    stale_until: float


class Authenticator:
    """Verifies the master key, access tokens, browser sessions and API keys.

    `cache_s` is the lifetime of a result, `stale_s` its lifetime while Redis is unavailable,
    `entries` the size of the cache.
    """

    def __init__(
        self,
        store: AccountStore,
        keyring: Keyring,
        master_key: str,
        *,
        cache_s: float = 5,
        stale_s: float = 900,
        entries: int = 10_000,
    ) -> None:
        self._store = store
        self._keys = ApiKeys(store)
        self._keyring = keyring
        self._master = hashlib.sha256(master_key.encode()).digest()
        self._cache_s = cache_s
        self._stale_s = stale_s
        self._entries = entries
        # Keyed by digest: the cache contains no usable credential, and lookup time reveals nothing.
        self._seen: dict[bytes, _Seen] = {}

    def known(self, credential: Credential) -> Principal | None:
        """Return the principal of a credential verified in the last seconds, else None."""
        seen = self._seen.get(_digest(credential))
        return seen.principal if seen is not None and time.time() < seen.fresh_until else None

    def remembers(self, credential: Credential) -> bool:
        """Return whether a credential is in the cache, even if it is stale."""
        return _digest(credential) in self._seen

    def is_genuine(self, credential: Credential) -> bool:
        """Return whether this server issued a credential, without asking Redis.

        It may have been revoked since. False for API keys, except the master key: only Redis has
        them.
        """
        text = credential.value[:_LONGEST].decode(errors="surrogateescape")
        try:
            if credential.source is CredentialSource.COOKIE:
                self._keyring.read_session_token(BROWSER_PREFIX, text)
            elif text.startswith(TICKET_PREFIX):
                self._keyring.read_ticket(text)
            elif text.count(".") == 2:
                self._keyring.read_access_token(text)
            else:
                return hmac.compare_digest(hashlib.sha256(credential.value).digest(), self._master)
        except (UnauthorizedError, SessionEndedError):
            return False
        return True

    async def check(self, credential: Credential) -> Principal:
        """Return the principal of a credential.

        :raises UnauthorizedError, SessionEndedError: when it is invalid.
        :raises AccountsUnavailableError: when it cannot be verified now.
        """
        digest = _digest(credential)
        try:
            principal = await self._look_up(credential)
        except RedisUnavailableError as error:
            seen = self._seen.get(digest)
            if seen is None or time.time() >= seen.stale_until:
                raise unavailable(error) from None
            return seen.principal
        except (UnauthorizedError, SessionEndedError):
            self._seen.pop(digest, None)
            raise
        self._remember(digest, principal)
        return principal

    async def renew(self, principal: Principal) -> Principal | None:
        """Return the current `principal` of an open connection, or None if it is invalid."""
        try:
            match principal.kind:
                case CredentialKind.MASTER:
                    return principal
                case CredentialKind.KEY:
                    return await self._keys.renew(principal.credential)
                case _:
                    found = await self._store.session(principal.credential)
                    return (
                        _of_session(*found, principal.kind, principal.expires_at_s)
                        if found
                        else None
                    )
        except RedisUnavailableError:
            return principal

    def forget(self) -> None:
        """Mark the cache as stale, so that a revocation takes effect at once."""
        for seen in self._seen.values():
            seen.fresh_until = 0

    async def _look_up(self, credential: Credential) -> Principal:
        value = credential.value
        if len(value) > _LONGEST:
            raise UnauthorizedError("the credential is too long to be one")
        text = value.decode(errors="surrogateescape")
        if credential.source is CredentialSource.COOKIE:
            return await self._browser(text)
        if hmac.compare_digest(hashlib.sha256(value).digest(), self._master):
            return MASTER
        if text.startswith((REFRESH_PREFIX, BROWSER_PREFIX)):
            raise UnauthorizedError(
                "this token is no access token; a refresh token is exchanged for one at "
                "/api/auth/refresh"
            )
        if text.startswith(TICKET_PREFIX):
            return await self._ticket_holder(text)
        if text.startswith(keys.PREFIX):
            return await self._keys.authenticate(text)
        if text.count(".") == 2:
            return await self._user(self._keyring.read_access_token(text))
        raise UnauthorizedError(
            "this key is not known; `mev config key` prints the master key of this machine"
        )

    async def _user(self, claims: Claims) -> Principal:
        try:
            found = await self._store.session(claims.session)
        except RedisUnavailableError:
            # The token is signed and short-lived: accept it until the session can be read again.
            return _principal(
                claims.user,
                claims.role,
                CredentialKind.USER,
                claims.session,
                claims.authenticated_at_s,
                expires_at_s=claims.expires_at_s,
            )
        if found is None or found[1].name != claims.user:
            raise SessionEndedError("the session has ended; log in again")
        return _of_session(*found, CredentialKind.USER, claims.expires_at_s)

    async def _ticket_holder(self, text: str) -> Principal:
        ticket = self._keyring.read_ticket(text)
        nobody = frozenset[Permission]()
        claimed = Principal(
            id=ticket.principal,
            name=ticket.name,
            kind=ticket.kind,
            permissions=nobody,
            credential=ticket.credential,
        )
        principal = MASTER if ticket.kind is CredentialKind.MASTER else await self.renew(claimed)
        if principal is claimed:
            raise AccountsUnavailableError(
                "whose the ticket is cannot be looked up now; try again", retry_after_s=2
            )
        if principal is None:
            raise SessionEndedError("the session or key behind the ticket has ended; log in again")
        stream = principal.permissions & {Permission.STREAM_READ}
        return replace(principal, permissions=stream, expires_at_s=ticket.expires_at_s)

    async def _browser(self, text: str) -> Principal:
        token = self._keyring.read_session_token(BROWSER_PREFIX, text)
        found = await self._store.session(token.session)
        if found is None:
            raise SessionEndedError("the session has ended; log in again")
        return _of_session(*found, CredentialKind.BROWSER, found[0].expires_s)

    def _remember(self, digest: bytes, principal: Principal) -> None:
        now = time.time()
        ends = principal.expires_at_s or float("inf")
        self._seen.pop(digest, None)
        while len(self._seen) >= self._entries:
            del self._seen[next(iter(self._seen))]
        self._seen[digest] = _Seen(
            principal, min(now + self._cache_s, ends), min(now + self._stale_s, ends)
        )


def _of_session(
    session: SessionRecord, user: User, kind: CredentialKind, expires_at_s: float | None
) -> Principal:
    return _principal(
        user.name, user.role, kind, session.id, session.authenticated_s, expires_at_s=expires_at_s
    )


def _principal(
    name: str,
    role: Role,
    kind: CredentialKind,
    session: str,
    authenticated_at_s: float,
    *,
    expires_at_s: float | None,
) -> Principal:
    return Principal(
        id=f"user:{name}",
        name=name,
        kind=kind,
        permissions=ROLES[role],
        user=name,
        credential=session,
        authenticated_at_s=authenticated_at_s,
        expires_at_s=expires_at_s,
    )


def _digest(credential: Credential) -> bytes:
    return hashlib.sha256(credential.value + credential.source.name.encode()).digest()
