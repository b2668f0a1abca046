"""Commands ``mev login``, ``mev logout``, ``mev user`` and ``mev key``."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

import orjson
import typer

from mev.auth.model import Permission, Role
from mev.cli import api
from mev.cli.session_file import SessionFile
from mev.cli.tables import print_table
from mev.core.errors import InvalidInputError
from mev.settings import load

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
PasswordOnInput = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]
users = typer.Typer(help="Manage users.", no_args_is_help=True)
keys = typer.Typer(help="Manage API keys.", no_args_is_help=True)
_USER_COLUMNS = ("name", "role", "disabled", "created_at")
_KEY_COLUMNS = ("id", "name", "owner", "state", "expires_at", "used_at", "scopes")


def login(
    name: Annotated[str, typer.Argument(help="Name of the user.")],
    password_stdin: PasswordOnInput = False,
) -> None:
    """Log in; the other commands then act as this user until `mev logout`."""
    password = _password(password_stdin, confirm=False)
    answer = api.ask_api(
        "POST", "/api/auth/login", {"name": name, "password": password}, login=False
    )
    api.keep_login(_file(), name, answer.json())
    typer.echo(f"logged in as {name}")


def logout(
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="End every session of the user.")
    ] = False,
) -> None:
    """Log out on this machine."""
    file = _file()
    if file.read() is None:
        typer.echo("nobody is logged in")
        return
    try:
        api.ask_api("POST", "/api/auth/logout", {"everywhere": everywhere})
    finally:
        file.remove()
    typer.echo("logged out")


@users.command("add")
def user_add(
    name: str,
    role: Annotated[Role, typer.Option(help="Role of the user.")] = Role.VIEWER,
    password_stdin: PasswordOnInput = False,
    json: Json = False,
) -> None:
    """Create a user; prompts for a password."""
    body = {"name": name, "password": _password(password_stdin, confirm=True), "role": role}
    _show([api.ask_api("POST", "/api/auth/users", body).json()], _USER_COLUMNS, json=json, one=True)


@users.command("list")
def user_list(json: Json = False) -> None:
    """List the users."""
    _show(_pages("/api/auth/users"), _USER_COLUMNS, json=json)


@users.command("role")
def user_role(name: str, role: Role, json: Json = False) -> None:
    """Change the role of a user."""
    _show([_change(name, role=role)], _USER_COLUMNS, json=json, one=True)


@users.command("disable")
def user_disable(name: str, json: Json = False) -> None:
    """Disable a user: sessions end and API keys stop working within seconds."""
    _show([_change(name, disabled=True)], _USER_COLUMNS, json=json, one=True)


@users.command("enable")
def user_enable(name: str, json: Json = False) -> None:
    """Enable a disabled user."""
    _show([_change(name, disabled=False)], _USER_COLUMNS, json=json, one=True)


@users.command("password")
def user_password(name: str, password_stdin: PasswordOnInput = False) -> None:
    """Set a new password; prompts for it and ends the user's sessions."""
    api.ask_api(
        "PUT",
        f"/api/auth/users/{name}/password",
        {"password": _password(password_stdin, confirm=True)},
    )
    typer.echo(f"{name} has a new password")


@keys.command("create")
def key_create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[Permission], typer.Option(help="Permission of the key; may be repeated.")
    ],
    days: Annotated[float, typer.Option(min=0.001, help="Days until it expires.")] = 90.0,
    json: Json = False,
) -> None:
    """Create an API key and print it once."""
    made = api.ask_api(
        "POST", "/api/auth/keys", {"name": name, "scopes": scope, "days": days}
    ).json()
    if json:
        typer.echo(orjson.dumps(made))
    else:
        typer.echo(made["key"])
        typer.echo(f"id {made['id']}, until {made['expires_at']}; it is not shown again", err=True)


@keys.command("list")
def key_list(
    everyone: Annotated[bool, typer.Option("--all", help="Keys of all users.")] = False,
    json: Json = False,
) -> None:
    """List API keys."""
    _show(_pages("/api/auth/keys", everyone=str(everyone).lower()), _KEY_COLUMNS, json=json)


@keys.command("revoke")
def key_revoke(
    key: Annotated[
        str, typer.Argument(help="The key's name or id, as `mev key list --all` shows them.")
    ],
) -> None:
    """Revoke an API key: it is refused within seconds, and open connections are closed."""
    found = [
        one
        for one in _pages("/api/auth/keys", everyone="true")
        if key == one["id"] or (key == one["name"] and one["state"] == "active")
    ]
    if len(found) > 1:
        ids = ", ".join(f"{one['id']} of {one['owner']}" for one in found)
        raise InvalidInputError(
            f"{len(found)} keys are called {key!r}: {ids}; name one by its id", code="ambiguous_key"
        )
    key_id = found[0]["id"] if found else key
    api.ask_api("DELETE", f"/api/auth/keys/{quote(key_id, safe='')}")
    typer.echo(f"{key_id} is revoked")


def _change(name: str, **changes: object) -> dict[str, Any]:
    changed: dict[str, Any] = api.ask_api("PATCH", f"/api/auth/users/{name}", changes).json()
    return changed


def _pages(path: str, **params: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = api.ask_api(
            "GET", path, params=params | ({"cursor": cursor} if cursor else {})
        ).json()
        items += page["items"]
        cursor = page["next_cursor"]
    return items


def _show(
    items: list[dict[str, Any]], columns: Sequence[str], *, json: bool, one: bool = False
) -> None:
    if json:
        typer.echo(orjson.dumps(items[0] if one else {"items": items, "next_cursor": None}))
        return
    print_table(columns, [[_cell(item[column]) for column in columns] for item in items])


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _password(from_input: bool, *, confirm: bool) -> str:
    if from_input:
        return sys.stdin.readline().rstrip("\n")
    if not sys.stdin.isatty():
        raise InvalidInputError(
            "there is no terminal to ask for a password at; give it on standard input with "
            "--password-stdin"
        )
    password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=confirm)
    return password


def _file() -> SessionFile:
    return SessionFile(load().mev_data_dir)
