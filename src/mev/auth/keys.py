"""API keys for programs: shown once, stored as a digest, with scopes and an expiry."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Collection

from mev.auth.audit import DONE, REFUSED, AuditCallback, no_audit, note
from mev.auth.errors import (
    InvalidScopeError,
    UnauthorizedError,
    UnknownApiKeyError,
)
from mev.auth.model import (
    MASTER_OWNER,
    NEVER_IN_KEYS,
    ROLES,
    ApiKey,
    CredentialKind,
    Permission,
    Principal,
    User,
)
from mev.auth.store import MAX_KEYS_PER_OWNER, AccountStore
from mev.core.errors import ConflictError

PREFIX = "mev_"
_LONGEST = 200


class ApiKeys:
    """Rules of API keys, on top of a store."""

    def __init__(self, store: AccountStore, *, audit: AuditCallback = no_audit) -> None:
        self._store = store
        self._audit = audit

    async def create(
        self, actor: Principal, name: str, scopes: Collection[Permission], lifetime_s: float
    ) -> tuple[ApiKey, str]:
        """Create a key of `actor` and return it with its text, which is not stored.

        :raises InvalidScopeError: when the actor lacks a scope, or keys cannot have it.
        """
        for scope in sorted(scopes):
            if scope in NEVER_IN_KEYS:
                raise InvalidScopeError(
                    f"no key can have {scope}: accounts are kept by people, logged in",
                    scope=scope.value,
                )
            if not actor.may(scope):
                raise InvalidScopeError(f"you have not {scope} yourself", scope=scope.value)
        key_id, now = secrets.token_hex(8), time.time()
        text = f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
        key = ApiKey(
            id=key_id,
            name=name,
            owner=actor.user or MASTER_OWNER,
            digest=_digest(text),
            scopes=frozenset(scopes),
            created_s=now,
            expires_s=now + lifetime_s,
        )
        await self._audit(
            actor.id, "key.create", key.id, DONE, {"name": name, "scopes": sorted(key.scopes)}
        )
        if not await self._store.create_key(key):
            await note(self._audit, actor.id, "key.create", key.id, REFUSED)
            raise ConflictError(
                f"an owner may have {MAX_KEYS_PER_OWNER} keys, those that ended in the last 30 "
                "days included",
                code="too_many_keys",
            )
        return key, text

    async def page(
        self, owner: str | None, after: float, limit: int
    ) -> tuple[list[ApiKey], float | None]:
        """Return a page of the keys of `owner` (None: of all users), and the next position."""
        return await self._store.keys(owner, after, limit)

    async def revoke(self, actor: Principal, key_id: str) -> None:
        """Revoke a key of the actor, or of any user with the permission to manage keys."""
        key = await self._store.key(key_id)
        own = key is not None and key.owner == (actor.user or MASTER_OWNER)
        if not (own or actor.may(Permission.KEYS_MANAGE)) or not await self._store.revoke_key(
            key_id, time.time()
        ):
            raise UnknownApiKeyError(f"you have no key {key_id[:40]!r}")
        await note(self._audit, actor.id, "key.revoke", key_id)

    async def authenticate(self, text: str) -> Principal:
        """Return the principal of a valid key.

        :raises UnauthorizedError: for any other text.
        :raises RedisUnavailableError: when the key cannot be verified.
        """
        key_id, _, secret = text.removeprefix(PREFIX).partition("_")
        found = (
            await self._store.use_key(key_id, time.time())
            if secret and len(text) <= _LONGEST and key_id.isalnum()
            else None
        )
        digest = found[0].digest if found else ""
        if not hmac.compare_digest(digest.encode(), _digest(text).encode()) or found is None:
            raise UnauthorizedError("this API key is not known")
        return _principal(*found)

    async def renew(self, key_id: str) -> Principal | None:
        """Return the principal of a key verified before, or None if it is not valid any more."""
        found = await self._store.use_key(key_id, time.time())
        try:
            return _principal(*found) if found else None
        except UnauthorizedError:
            return None


def _principal(key: ApiKey, owner: User | None) -> Principal:
    if key.revoked_s is not None:
        raise UnauthorizedError("this API key was revoked; make another with `mev key create`")
    if key.expires_s <= time.time():
        raise UnauthorizedError("this API key has expired; make another with `mev key create`")
    if key.owner != MASTER_OWNER and (owner is None or owner.disabled):
        raise UnauthorizedError("the owner of this API key is disabled")
    # A key has at most the current permissions of its owner.
    granted = key.scopes & ROLES[owner.role] if owner else key.scopes
    return Principal(
        id=f"key:{key.id}",
        name=f"{key.owner or 'master'}/{key.name}",
        kind=CredentialKind.KEY,
        permissions=granted - NEVER_IN_KEYS | {Permission.SELF_READ},
        user=owner.name if owner else None,
        credential=key.id,
        expires_at_s=key.expires_s,
    )


def _digest(text: str) -> str:
    # The secret has 256 random bits, so a plain digest resists dictionary attacks.
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
