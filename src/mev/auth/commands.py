"""``mev login``, ``mev logout``, ``mev user``, ``mev key``: accounts from the command line, through the API."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import orjson
import typer

from mev import wiring
from mev.auth.model import Permission, Role
from mev.core.errors import InvalidInputError
from mev.core.terminal import print_table
from mev.settings import load
from mev.store.session import SessionFile

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
PasswordOnInput = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]
users = typer.Typer(help="Keep the users.", no_args_is_help=True)
keys = typer.Typer(help="Keep API keys.", no_args_is_help=True)
_USER_COLUMNS = ("name", "role", "disabled", "created_at")
_KEY_COLUMNS = ("id", "name", "owner", "state", "expires_at", "used_at", "scopes")


def login(
    name: Annotated[str, typer.Argument(help="Name of the user.")],
    password_stdin: PasswordOnInput = False,
) -> None:
    """Log in; the other commands then act as this user, until `mev logout`."""
    password = _password(password_stdin, confirm=False)
    answer = wiring.ask_api("POST", "/api/auth/login", {"name": name, "password": password}, login=False)
    wiring.keep_login(_file(), name, answer.json())
    typer.echo(f"logged in as {name}")


def logout(everywhere: Annotated[bool, typer.Option("--everywhere", help="End every session of the user.")] = False) -> None:
    """End the login of this machine."""
    file = _file()
    if file.read() is None:
        typer.echo("nobody is logged in")
        return
    try:
        wiring.ask_api("POST", "/api/auth/logout", {"everywhere": everywhere})
    finally:
        file.remove()
    typer.echo("logged out")


@users.command("add")
def user_add(
    name: str,
    role: Annotated[Role, typer.Option(help="What the user may do.")] = Role.VIEWER,
    password_stdin: PasswordOnInput = False,
    json: Json = False,
) -> None:
    """Create a user; asks for a password."""
    body = {"name": name, "password": _password(password_stdin, confirm=True), "role": role}
    _show([wiring.ask_api("POST", "/api/auth/users", body).json()], _USER_COLUMNS, json=json, one=True)


@users.command("list")
def user_list(json: Json = False) -> None:
    """List the users."""
    _show(_pages("/api/auth/users"), _USER_COLUMNS, json=json)


@users.command("role")
def user_role(name: str, role: Role, json: Json = False) -> None:
    """Give a user another role."""
    _show([_change(name, role=role)], _USER_COLUMNS, json=json, one=True)


@users.command("disable")
def user_disable(name: str, json: Json = False) -> None:
    """Lock a user out: sessions end and keys stop within seconds."""
    _show([_change(name, disabled=True)], _USER_COLUMNS, json=json, one=True)


@users.command("enable")
def user_enable(name: str, json: Json = False) -> None:
    """Let a disabled user in again."""
    _show([_change(name, disabled=False)], _USER_COLUMNS, json=json, one=True)


@users.command("password")
def user_password(name: str, password_stdin: PasswordOnInput = False) -> None:
    """Give a user a new password; asks for it, and ends their sessions."""
    wiring.ask_api("PUT", f"/api/auth/users/{name}/password", {"password": _password(password_stdin, confirm=True)})
    typer.echo(f"{name} has a new password")


@keys.command("create")
def key_create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[Permission], typer.Option(help="What it may do; may be repeated.")],
    days: Annotated[float, typer.Option(min=0.001, help="How long it lasts.")] = 90.0,
    json: Json = False,
) -> None:
    """Create an API key and print it: this once."""
    made = wiring.ask_api("POST", "/api/auth/keys", {"name": name, "scopes": scope, "days": days}).json()
    if json:
        typer.echo(orjson.dumps(made))
    else:
        typer.echo(made["key"])
        typer.echo(f"id {made['id']}, until {made['expires_at']}; it is not shown again", err=True)


@keys.command("list")
def key_list(everyone: Annotated[bool, typer.Option("--all", help="Those of every user.")] = False, json: Json = False) -> None:
    """List API keys."""
    _show(_pages("/api/auth/keys", everyone=str(everyone).lower()), _KEY_COLUMNS, json=json)


@keys.command("revoke")
def key_revoke(key_id: Annotated[str, typer.Argument(help="The key's id, as `mev key list` shows it.")]) -> None:
    """Revoke an API key: refused everywhere within seconds, open connections closed."""
    wiring.ask_api("DELETE", f"/api/auth/keys/{key_id}")
    typer.echo(f"{key_id} is revoked")


def _change(name: str, **changes: object) -> dict[str, Any]:
    changed: dict[str, Any] = wiring.ask_api("PATCH", f"/api/auth/users/{name}", changes).json()
    return changed


def _pages(path: str, **params: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = wiring.ask_api("GET", path, params=params | ({"cursor": cursor} if cursor else {})).json()
        items += page["items"]
        cursor = page["next_cursor"]
    return items


def _show(items: list[dict[str, Any]], columns: Sequence[str], *, json: bool, one: bool = False) -> None:
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
        raise InvalidInputError("there is no terminal to ask for a password at; give it on standard input with --password-stdin")
    password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=confirm)
    return password


def _file() -> SessionFile:
    return SessionFile(load().mev_data_dir)
