"""Routes of ``/api/auth``: sessions, users and API keys."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from mev.auth.authenticator import Authenticator
from mev.auth.browser import session_cookie
from mev.auth.dependencies import (
    KeysOwn,
    KeysOwnFresh,
    Self,
    SelfRead,
    UsersManage,
    UsersManageFresh,
)
from mev.auth.errors import ReusedTokenError
from mev.auth.keys import ApiKeys
from mev.auth.model import MASTER_OWNER, ROLES, CredentialKind, Permission, Principal
from mev.auth.service import Accounts
from mev.auth.tokens import Keyring
from mev.auth.views import (
    BrowserLoginOut,
    KeyIn,
    KeysOut,
    LoginIn,
    LoginOut,
    LogoutIn,
    MeOut,
    NewKeyOut,
    OwnPasswordIn,
    PasswordIn,
    RefreshIn,
    RoleOut,
    RolesOut,
    UserChangeIn,
    UserIn,
    UserOut,
    UsersOut,
    browser_view,
    key_view,
    login_view,
    me_view,
    user_view,
)
from mev.core.errors import InvalidInputError
from mev.core.paging import InvalidCursorError, decode_cursor, encode_cursor
from mev.core.query import QueryInt

Limit = Annotated[QueryInt, Query(ge=1, le=1000)]
_DAY_S = 86_400
_PRIVATE = {"Cache-Control": "no-store"}


def router(
    accounts: Accounts,
    api_keys: ApiKeys,
    authenticator: Authenticator,
    keyring: Keyring,
    *,
    key_max_days: int,
) -> APIRouter:
    """Return all routes of accounts."""
    routes = APIRouter(prefix="/api/auth", tags=["auth"])
    _add_sessions(routes, accounts, authenticator, keyring)
    _add_users(routes, accounts, authenticator)
    _add_keys(routes, api_keys, authenticator, key_max_days)
    return routes


def _add_sessions(
    routes: APIRouter, accounts: Accounts, authenticator: Authenticator, keyring: Keyring
) -> None:
    @routes.post("/login", summary="Log in with name and password")
    async def login(
        body: LoginIn, request: Request, response: Response
    ) -> LoginOut | BrowserLoginOut:
        """Return an access token and a refresh token.

        With `browser`, set an HttpOnly cookie and return a CSRF token instead.
        """
        made = await accounts.login(body.name, body.password, browser=body.browser)
        response.headers.update(_PRIVATE)
        if not body.browser:
            return login_view(made, accounts.lifetimes.access_s)
        _set_cookie(request, response, made.cookie, accounts.lifetimes.browser_s)
        return browser_view(made)

    @routes.post("/refresh", summary="Exchange a refresh token")
    async def refresh(body: RefreshIn, response: Response) -> LoginOut:
        """Exchange a refresh token, which is valid once.

        Using it twice ends the session: it may have been copied.
        """
        try:
            made = await accounts.refresh(body.refresh_token)
        except ReusedTokenError:
            authenticator.forget()  # the copier may have the access token too
            raise
        response.headers.update(_PRIVATE)
        return login_view(made, accounts.lifetimes.access_s)

    @routes.post("/logout", status_code=204, summary="End the session")
    async def logout(
        who: Self, request: Request, response: Response, body: LogoutIn | None = None
    ) -> None:
        """End the session of the token or cookie, or with `everywhere` all sessions of the user.

        It takes effect within seconds.
        """
        await accounts.logout(who, everywhere=bool(body and body.everywhere))
        authenticator.forget()
        if who.kind is CredentialKind.BROWSER:
            _set_cookie(request, response, "", 0)

    @routes.get("/me", summary="Say who is asking")
    async def me(who: SelfRead, response: Response) -> MeOut:
        """Return the permissions and the expiry of this credential."""
        response.headers.update(_PRIVATE)
        return me_view(
            who, keyring.csrf_token(who.credential) if who.kind is CredentialKind.BROWSER else None
        )

    @routes.post("/password", status_code=204, summary="Change one's own password")
    async def password(who: Self, body: OwnPasswordIn) -> None:
        """Change the password and end all sessions of the user."""
        await accounts.change_password(who, body.current_password, body.new_password)
        authenticator.forget()

    @routes.get("/roles", summary="List the roles")
    async def roles(_: SelfRead) -> RolesOut:
        """Return each role with its permissions, which are also the scopes of keys."""
        return RolesOut(
            items=[
                RoleOut(role=role, permissions=sorted(permissions))
                for role, permissions in ROLES.items()
            ]
        )


def _add_users(routes: APIRouter, accounts: Accounts, authenticator: Authenticator) -> None:
    @routes.get("/users", summary="List the users")
    async def users(_: UsersManage, limit: Limit = 100, cursor: str | None = None) -> UsersOut:
        """Return the users in order of creation."""
        found, following = await accounts.users(_position(cursor), limit)
        return UsersOut(items=[user_view(user) for user in found], next_cursor=_cursor(following))

    @routes.post("/users", status_code=201, summary="Create a user")
    async def add(who: UsersManageFresh, body: UserIn) -> UserOut:
        """Create a user; names are never reused, for the audit trail."""
        return user_view(await accounts.add_user(who, body.name, body.password, body.role))

    @routes.get("/users/{name}", summary="Show a user")
    async def show(_: UsersManage, name: str) -> UserOut:
        """Return one user."""
        return user_view(await accounts.user(name))

    @routes.patch("/users/{name}", summary="Change a user's role, disable or enable them")
    async def change(who: UsersManageFresh, name: str, body: UserChangeIn) -> UserOut:
        """Change a user; open sessions and keys change within seconds."""
        if body.role is not None:
            await accounts.set_role(who, name, body.role)
        if body.disabled is not None:
            await accounts.set_disabled(who, name, disabled=body.disabled)
        authenticator.forget()
        return user_view(await accounts.user(name))

    @routes.put("/users/{name}/password", status_code=204, summary="Give a user a new password")
    async def reset(who: UsersManageFresh, name: str, body: PasswordIn) -> None:
        """Set a password, end all sessions of the user and unlock the name."""
        await accounts.set_password(who, name, body.password)
        authenticator.forget()


def _add_keys(
    routes: APIRouter, api_keys: ApiKeys, authenticator: Authenticator, max_days: int
) -> None:
    @routes.get("/keys", summary="List API keys")
    async def keys(
        who: KeysOwn, limit: Limit = 100, cursor: str | None = None, everyone: bool = False
    ) -> KeysOut:
        """Return own keys; with `everyone` and permission to manage keys, all keys."""
        owner = None if everyone and who.may(Permission.KEYS_MANAGE) else _owner(who)
        found, following = await api_keys.page(owner, _position(cursor), limit)
        return KeysOut(items=[key_view(key) for key in found], next_cursor=_cursor(following))

    @routes.post("/keys", status_code=201, summary="Create an API key")
    async def create(who: KeysOwnFresh, body: KeyIn, response: Response) -> NewKeyOut:
        """Create a key, which is shown once.

        Its permissions are its scopes, limited by the current permissions of its owner.
        """
        if body.days > max_days:
            raise InvalidInputError(
                f"a key lasts {max_days} days at most; API_KEY_MAX_DAYS says so",
                field="days",
                code="invalid_lifetime",
            )
        key, text = await api_keys.create(who, body.name, body.scopes, body.days * _DAY_S)
        response.headers.update(_PRIVATE)
        return NewKeyOut(**key_view(key).model_dump(), key=text)

    @routes.delete("/keys/{id}", status_code=204, summary="Revoke an API key")
    async def revoke(who: KeysOwn, id: str) -> None:  # noqa: A002 - the parameter's public name
        """Revoke a key within seconds, and close its open connections."""
        await api_keys.revoke(who, id)
        authenticator.forget()


def _owner(who: Principal) -> str:
    return who.user or MASTER_OWNER


def _set_cookie(request: Request, response: Response, value: str, lifetime_s: float) -> None:
    response.headers.append(
        "set-cookie",
        session_cookie(value, secure=request.url.scheme == "https", lifetime_s=lifetime_s),
    )


def _position(cursor: str | None) -> float:
    if not cursor:
        return -1.0
    match decode_cursor(cursor):
        case [float(position)]:
            return position
    raise InvalidCursorError


def _cursor(position: float | None) -> str | None:
    return None if position is None else encode_cursor([position])
