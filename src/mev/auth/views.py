"""Request and response bodies of ``/api/auth``."""

import time
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from mev.auth.model import ApiKey, CredentialKind, Permission, Principal, Role, User
from mev.auth.service import Login
from mev.core.body import Body, Items
from mev.core.text import check_printable

Name = Annotated[str, AfterValidator(check_printable)]


class LoginIn(Body):
    """Name and password; `browser` requests a cookie instead of tokens."""

    name: Name = Field(max_length=80)
    password: str = Field(max_length=1024)
    browser: bool = False


class RefreshIn(Body):
    """A refresh token, valid for one exchange."""

    refresh_token: str = Field(max_length=512)


class LogoutIn(Body):
    """Sessions to end: the current one, or all of the user."""

    everywhere: bool = False


class PasswordIn(Body):
    """A new password."""

    password: str = Field(max_length=1024)


class OwnPasswordIn(Body):
    """The current and the new password."""

    current_password: str = Field(max_length=1024)
    new_password: str = Field(max_length=1024)


class UserIn(Body):
    """A new user."""

    name: Name = Field(max_length=80)
    password: str = Field(max_length=1024)
    role: Role


class UserChangeIn(Body):
    """Changes of a user."""

    role: Role | None = None
    disabled: bool | None = None


class KeyIn(Body):
    """A new API key: name, permissions and lifetime."""

    name: Name = Field(min_length=1, max_length=64)
    scopes: set[Permission] = Field(min_length=1)
    days: float = Field(90, gt=0)


class LoginOut(BaseModel):
    """Tokens of a login; the access token is sent as ``Authorization: Bearer``."""

    access_token: str
    token_type: str = "Bearer"  # noqa: S105 - the name of a scheme
    expires_in_s: float
    refresh_token: str
    session_expires_at: datetime


class BrowserLoginOut(BaseModel):
    """A login by cookie; writes must send the token in ``X-CSRF-Token``."""

    csrf_token: str
    session_expires_at: datetime


class MeOut(BaseModel):
    """The principal of the request."""

    id: str
    name: str
    kind: CredentialKind
    user: str | None
    permissions: list[Permission]
    expires_at: datetime | None
    csrf_token: str | None = None


class UserOut(BaseModel):
    """A user."""

    name: str
    role: Role
    disabled: bool
    created_at: datetime


class UsersOut(BaseModel):
    """A page of users."""

    items: list[UserOut]
    next_cursor: str | None


class KeyOut(BaseModel):
    """An API key, without its secret."""

    id: str
    name: str
    owner: str
    scopes: Items[Permission]
    state: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    revoked_at: datetime | None


class NewKeyOut(KeyOut):
    """A new API key; `key` is shown only here."""

    key: str


class KeysOut(BaseModel):
    """A page of API keys."""

    items: list[KeyOut]
    next_cursor: str | None


class RoleOut(BaseModel):
    """A role and its permissions."""

    role: Role
    permissions: list[Permission]


class RolesOut(BaseModel):
    """All roles."""

    items: list[RoleOut]
    next_cursor: None = None


def login_view(login: Login, lifetime_s: float) -> LoginOut:
    """Return the response to a program's login."""
    return LoginOut(
        access_token=login.access_token,
        expires_in_s=lifetime_s,
        refresh_token=login.refresh_token,
        session_expires_at=_moment(login.session.expires_s),
    )


def browser_view(login: Login) -> BrowserLoginOut:
    """Return the response to a browser's login."""
    return BrowserLoginOut(
        csrf_token=login.csrf_token, session_expires_at=_moment(login.session.expires_s)
    )


def me_view(principal: Principal, csrf_token: str | None) -> MeOut:
    """Return the response with the principal."""
    return MeOut(
        id=principal.id,
        name=principal.name,
        kind=principal.kind,
        user=principal.user,
        permissions=sorted(principal.permissions),
        expires_at=_moment(principal.expires_at_s) if principal.expires_at_s else None,
        csrf_token=csrf_token,
    )


def user_view(user: User) -> UserOut:
    """Return the response with a user."""
    return UserOut(
        name=user.name, role=user.role, disabled=user.disabled, created_at=_moment(user.created_s)
    )


def key_view(key: ApiKey) -> KeyOut:
    """Return the response with a key."""
    return KeyOut(
        id=key.id,
        name=key.name,
        owner=key.owner or "master",
        scopes=sorted(key.scopes),
        state="revoked"
        if key.revoked_s
        else "expired"
        if key.expires_s <= time.time()
        else "active",
        created_at=_moment(key.created_s),
        expires_at=_moment(key.expires_s),
        used_at=_moment(key.used_s) if key.used_s else None,
        revoked_at=_moment(key.revoked_s) if key.revoked_s else None,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
