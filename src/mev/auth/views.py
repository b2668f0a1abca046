"""What ``/api/auth`` takes and answers."""

import time
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mev.auth.model import Kind, Permission, Principal, Role
from mev.auth.records import ApiKey, User
from mev.auth.service import Login
from mev.core.text import check_printable

Name = Annotated[str, AfterValidator(check_printable)]


class Body(BaseModel):
    """A request body; a field that is not known is an error, not a wish unheard."""

    model_config = ConfigDict(extra="forbid")


class LoginIn(Body):
    """Who wants in; `browser` asks for a cookie instead of tokens."""

    name: Name = Field(max_length=80)
    password: str = Field(max_length=1024)
    browser: bool = False


class RefreshIn(Body):
    """A refresh token: good for one exchange."""

    refresh_token: str = Field(max_length=512)


class LogoutIn(Body):
    """Which sessions to end: this one, or every one of the user."""

    everywhere: bool = False


class PasswordIn(Body):
    """A new password."""

    password: str = Field(max_length=1024)


class OwnPasswordIn(Body):
    """A new password, and the present one."""

    current_password: str = Field(max_length=1024)
    new_password: str = Field(max_length=1024)


class UserIn(Body):
    """A new user."""

    name: Name = Field(max_length=80)
    password: str = Field(max_length=1024)
    role: Role


class UserChangeIn(Body):
    """What to change of a user."""

    role: Role | None = None
    disabled: bool | None = None


class KeyIn(Body):
    """A new API key: what it is for, what it may do, for how long."""

    name: Name = Field(min_length=1, max_length=64)
    scopes: set[Permission] = Field(min_length=1)
    days: float = Field(90, gt=0)


class LoginOut(BaseModel):
    """Tokens of a login: the access token goes in ``Authorization: Bearer``."""

    access_token: str
    token_type: str = "Bearer"  # noqa: S105 - the name of a scheme
    expires_in_s: float
    refresh_token: str
    session_expires_at: datetime


class BrowserLoginOut(BaseModel):
    """A login by cookie: what changes something carries the token in ``X-CSRF-Token``."""

    csrf_token: str
    session_expires_at: datetime


class MeOut(BaseModel):
    """Who is asking."""

    id: str
    name: str
    kind: Kind
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
    scopes: list[Permission]
    state: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    revoked_at: datetime | None


class NewKeyOut(KeyOut):
    """A new API key; `key` is shown this once."""

    key: str


class KeysOut(BaseModel):
    """A page of API keys."""

    items: list[KeyOut]
    next_cursor: str | None


class RoleOut(BaseModel):
    """A role and what it may do."""

    role: Role
    permissions: list[Permission]


class RolesOut(BaseModel):
    """Every role."""

    items: list[RoleOut]
    next_cursor: None = None


def login_view(login: Login, lifetime_s: float) -> LoginOut:
    """Return what a program is told of its login."""
    return LoginOut(
        access_token=login.access_token,
        expires_in_s=lifetime_s,
        refresh_token=login.refresh_token,
        session_expires_at=_moment(login.session.expires_s),
    )


def browser_view(login: Login) -> BrowserLoginOut:
    """Return what a page is told of its login."""
    return BrowserLoginOut(csrf_token=login.csrf_token, session_expires_at=_moment(login.session.expires_s))


def me_view(principal: Principal, csrf_token: str | None) -> MeOut:
    """Return what a principal is told of itself."""
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
    """Return what is shown of a user."""
    return UserOut(name=user.name, role=user.role, disabled=user.disabled, created_at=_moment(user.created_s))


def key_view(key: ApiKey) -> KeyOut:
    """Return what is shown of a key."""
    return KeyOut(
        id=key.id,
        name=key.name,
        owner=key.owner or "master",
        scopes=sorted(key.scopes),
        state="revoked" if key.revoked_s else "expired" if key.expires_s <= time.time() else "active",
        created_at=_moment(key.created_s),
        expires_at=_moment(key.expires_s),
        used_at=_moment(key.used_s) if key.used_s else None,
        revoked_at=_moment(key.revoked_s) if key.revoked_s else None,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
