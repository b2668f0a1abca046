"""Users and sessions: login, refresh, logout, and administration."""

import re
import secrets
import time
from dataclasses import dataclass

from prometheus_client import Counter

from mev.auth import passwords as rules
from mev.auth.audit import DONE, REFUSED, AuditCallback, no_audit, note
from mev.auth.errors import (
    AccountsUnavailableError,
    InvalidNameError,
    LoginLockedError,
    ReusedTokenError,
    SessionEndedError,
    UnknownUserError,
    UserExistsError,
    WrongPasswordError,
)
from mev.auth.model import Backoff, Principal, Role, SessionRecord, User
from mev.auth.passwords import FirstPassword, Passwords
from mev.auth.store import AccountStore
from mev.auth.tokens import BROWSER_PREFIX, REFRESH_PREFIX, Keyring, new_session_id
from mev.core.errors import InvalidInputError
from mev.store.redis import RedisUnavailableError

LOGINS = Counter("mev_auth_logins_total", "Logins tried.", ["outcome"])
REUSES = Counter(
    "mev_auth_refresh_reuse_total", "Sessions ended because a refresh token was used twice."
)
FIRST_ADMIN = "admin"
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_RESERVED_NAME = re.compile(r"master|system|anonymous|api-.*")
"""Names of actors in the audit trail that are not users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """Lifetimes in seconds."""

    access_s: float = 600
    session_s: float = 14 * 86_400
    browser_s: float = 12 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Result of a login: access and refresh tokens, or a cookie with a CSRF token for browsers."""

    user: User
    session: SessionRecord
    access_token: str = ""
    refresh_token: str = ""
    cookie: str = ""
    csrf_token: str = ""


class Accounts:
    """Rules of users and sessions, on top of a store."""

    def __init__(
        self,
        store: AccountStore,
        keyring: Keyring,
        passwords: Passwords,
        *,
        lifetimes: Lifetimes | None = None,
        backoff: Backoff | None = None,
        first_password: FirstPassword | None = None,
        audit: AuditCallback = no_audit,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._passwords = passwords
        self.lifetimes = lifetimes or Lifetimes()
        self._backoff = backoff or Backoff()
        self._first_password = first_password
        self._audit = audit

    async def create_first_admin(self) -> str | None:
        """Create the first administrator if there is no user.

        Return the password, which is not stored.
        """
        if await self._store.any_user():
            return None
        password = secrets.token_urlsafe(18)
        user = User(
            name=FIRST_ADMIN,
            role=Role.ADMIN,
            password=await self._passwords.hash(password),
            created_s=time.time(),
        )
        if not await self._store.create_user(user):
            return None  # another process created it first
        await note(self._audit, "system", "user.add", FIRST_ADMIN, role=user.role.value)
        return password

    async def login(self, name: str, password: str, *, browser: bool = False) -> Login:
        """Open a session.

        :raises WrongPasswordError: for a wrong password, an unknown name or a disabled user.
        :raises LoginLockedError: after too many wrong passwords.
        """
        name = name.strip().lower()[:80]
        try:
            user = await self._verified(name, password)
            await self._audit(f"user:{name}", "login", name, DONE, {"browser": browser})
            login = await self._open(user, browser=browser)
        except RedisUnavailableError as error:
            raise unavailable(error) from None
        LOGINS.labels("done").inc()
        self._forget_first_password(name)
        return login

    async def refresh(self, token: str) -> Login:
        """Exchange a refresh token for an access token and the next refresh token.

        :raises ReusedTokenError: when the token was used before, which ends the session.
        :raises SessionEndedError: when the session has ended.
        """
        genuine = self._keyring.read_session_token(REFRESH_PREFIX, token)
        try:
            open_session = await self._store.session(genuine.session)
            generation = (
                await self._store.rotate(genuine.session, genuine.generation) if open_session else 0
            )
        except RedisUnavailableError as error:
            raise unavailable(error) from None
        if generation < 0:
            REUSES.inc()
            owner = open_session[1].name if open_session else ""
            await note(self._audit, f"user:{owner}", "session.reuse", genuine.session, REFUSED)
            raise ReusedTokenError(
                "this refresh token was used before: someone may have copied it, so the "
                "session is ended; log in again"
            )
        if not open_session or not generation:
            raise SessionEndedError("the session has ended; log in again")
        session, user = open_session
        return self._tokens(user, session, generation)

    async def logout(self, principal: Principal, *, everywhere: bool = False) -> None:
        """End the session of `principal`, or all sessions of its user."""
        if principal.user is None:
            return
        await (
            self._store.end_sessions(principal.user)
            if everywhere
            else self._store.end_session(principal.credential)
        )
        await note(self._audit, principal.id, "logout", principal.credential, everywhere=everywhere)

    async def add_user(self, actor: Principal, name: str, password: str, role: Role) -> User:
        """Create a user."""
        name = name.strip().lower()
        if not _NAME.fullmatch(name):
            raise InvalidNameError(
                "a name has 1 to 64 lower-case letters, digits and . _ @ -, and starts with a "
                "letter or digit"
            )
        if _RESERVED_NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name} is a name that the audit trail gives to what is no user; take another",
                code="reserved_name",
            )
        rules.check_acceptable(password, name)
        user = User(
            name=name,
            role=role,
            password=await self._passwords.hash(password),
            created_s=time.time(),
        )
        await self._audit(actor.id, "user.add", name, DONE, {"role": role.value})
        if not await self._store.create_user(user):
            await note(self._audit, actor.id, "user.add", name, REFUSED)
            raise UserExistsError(f"there is a user {name}")
        return user

    async def user(self, name: str) -> User:
        """Return a user."""
        user = await self._store.user(name)
        if user is None:
            raise UnknownUserError(f"there is no user {name[:64]!r}")
        return user

    async def users(self, after: float, limit: int) -> tuple[list[User], float | None]:
        """Return users in order of creation, and the next position."""
        return await self._store.users(after, limit)

    async def set_role(self, actor: Principal, name: str, role: Role) -> None:
        """Change a user's role, also for open sessions and keys."""
        await self.user(name)
        await self._audit(actor.id, "user.role", name, DONE, {"role": role.value})
        await self._store.set_role(name, role)

    async def set_disabled(self, actor: Principal, name: str, *, disabled: bool) -> None:
        """Disable a user, which ends sessions and suspends keys, or enable the user."""
        await self.user(name)
        if not disabled:
            await self._audit(actor.id, "user.enable", name, DONE, {})
        await self._store.set_disabled(name, disabled=disabled)
        if disabled:
            await note(self._audit, actor.id, "user.disable", name)

    async def set_password(self, actor: Principal, name: str, password: str) -> None:
        """Set a user's password and end the user's sessions."""
        rules.check_acceptable(password, name)
        await self.user(name)
        hashed = await self._passwords.hash(password)
        await self._audit(actor.id, "user.password", name, DONE, {})
        await self._store.set_password(name, hashed)
        await self._store.forgive(name)
        self._forget_first_password(name)

    async def change_password(self, principal: Principal, current: str, new: str) -> None:
        """Change the principal's own password and end its sessions."""
        if principal.user is None:
            raise UnknownUserError(
                "the master key has no password; set MASTER_API_KEY to change it"
            )
        await self._verified(principal.user, current)
        await self.set_password(principal, principal.user, new)

    def _forget_first_password(self, name: str) -> None:
        if name == FIRST_ADMIN and self._first_password:
            self._first_password.forget()

    async def _verified(self, name: str, password: str) -> User:
        locked_s = await self._store.attempt(name, self._backoff)
        if locked_s:
            LOGINS.labels("locked").inc()
            raise LoginLockedError(
                f"too many wrong passwords; try again in {locked_s:.0f} s, or ask an "
                "administrator for a new one",
                retry_after_s=int(locked_s) + 1,
            )
        user = await self._store.user(name)
        matches = await self._passwords.verify(user.password if user else None, password)
        if user is None or user.disabled or not matches:
            LOGINS.labels("refused").inc()
            await note(self._audit, f"user:{name}", "login", name, REFUSED)
            raise WrongPasswordError("there is no such user with this password")
        await self._store.forgive(name)
        if self._passwords.outdated(user.password):
            await self._store.rehash_password(name, await self._passwords.hash(password))
        return user

    async def _open(self, user: User, *, browser: bool) -> Login:
        now = time.time()
        lifetime_s = self.lifetimes.browser_s if browser else self.lifetimes.session_s
        session = SessionRecord(
            id=new_session_id(),
            user=user.name,
            epoch=user.epoch,
            generation=1,
            authenticated_s=now,
            expires_s=now + lifetime_s,
        )
        await self._store.open_session(session)
        if browser:
            cookie = self._keyring.session_token(BROWSER_PREFIX, session.id, 0)
            return Login(
                user=user,
                session=session,
                cookie=cookie,
                csrf_token=self._keyring.csrf_token(session.id),
            )
        return self._tokens(user, session, session.generation)

    def _tokens(self, user: User, session: SessionRecord, generation: int) -> Login:
        access = self._keyring.access_token(
            user.name,
            user.role,
            session.id,
            authenticated_at_s=session.authenticated_s,
            lifetime_s=self.lifetimes.access_s,
        )
        refresh = self._keyring.session_token(REFRESH_PREFIX, session.id, generation)
        return Login(user=user, session=session, access_token=access, refresh_token=refresh)


def unavailable(error: RedisUnavailableError) -> AccountsUnavailableError:
    """Return the error for a caller when accounts cannot be read."""
    return AccountsUnavailableError(
        f"the accounts cannot be read now: {error.detail}; access tokens, keys used lately and "
        "the master key still work",
        retry_after_s=5,
    )
