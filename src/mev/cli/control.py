"""Commands ``kill``, ``resume``, ``command``, ``agents``, ``approvals`` and ``rotate-key``."""

import base64
import json as json_module
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mev.cli.api import ApiError, ask_api, ask_pages, send_stop, whole_id
from mev.cli.command_answers import (
    COMMANDS,
    DEFAULT_WAIT_S,
    Json,
    Wait,
    about,
    print_answers,
    report,
)
from mev.cli.tables import Id, print_table
from mev.core.clock import now_ns
from mev.core.errors import InvalidInputError, MevError
from mev.core.text import counted, shown
from mev.settings import load_usable

Reason = Annotated[
    str | None,
    typer.Option(
        help="Reason for the audit trail; prompted for in a terminal.", show_default=False
    ),
]
Module = Annotated[str | None, typer.Option(help="Only this module.", show_default=False)]
Agent = Annotated[str | None, typer.Option(help="Only this agent.", show_default=False)]
command = typer.Typer(help="Send commands to agents and show their answers.", no_args_is_help=True)
agents = typer.Typer(help="List and revoke agents.", no_args_is_help=True)
approvals = typer.Typer(help="List, approve and reject proposals.", no_args_is_help=True)
_COMMAND_COLUMNS = (
    "id",
    "kind",
    "issuer",
    "issued_at",
    "SYNCED",
    "STALE",
    "ERROR",
    "NOT_SENT",
    "state",
)
_AGENT_COLUMNS = (
    "agent_id",
    "module",
    "state",
    "level",
    "ordered_level",
    "last_seen",
    "clock_offset_ms",
    "trouble",
)
_SPARE = ("clock_offset_ms", "last_seen", "ordered_level", "module", "issuer", "issued_at")
"""Columns left out in a terminal that is too narrow, the first ones first."""
_TIMES = frozenset({"issued_at", "last_seen", "expires_at"})
_AGENTS = "/api/control/agents"
_APPROVALS, _KILL_SWITCH = "/api/control/approvals", "/api/control/kill-switch"
_LEVELS = ("HALTED", "REDUCING", "NO_NEW", "ACTIVE")
_NO_REASON = "no reason given"
_LONGEST_REASON = 500
_ASK_S = 20


class InvalidLevelError(InvalidInputError):
    """The level does not exist, or another command sets it."""

    code = "invalid_level"


class HeldLowerError(MevError):
    """A level was raised, but another order keeps agents of the target lower."""

    code = "held_lower"


def kill(
    reason: Reason = None,
    level: Annotated[str, typer.Option(help="HALTED, REDUCING or NO_NEW (any case).")] = "HALTED",
    module: Module = None,
    agent: Agent = None,
    duration: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds until the previous level returns.", show_default=False),
    ] = None,
    wait: Wait = DEFAULT_WAIT_S,
    json: Json = False,
) -> None:
    """Stop all agents, a module or one agent at once; `mev resume` lets them trade again.

    Prints each agent's answer. Exit code 0: every agent that was online has obeyed.
    """
    level = _level(level)
    if level == "ACTIVE":
        raise InvalidLevelError(
            "--level ACTIVE raises the level, and `mev kill` only lowers it; use `mev resume`"
        )
    body = _target(module, agent) | {
        "level": level,
        "reason": _stop_reason(reason),
        "duration": duration,
        "lower_only": True,
    }
    try:
        answer = send_stop(
            _KILL_SWITCH, {name: value for name, value in body.items() if value is not None}, _say
        )
    except ApiError as error:
        if error.fields.get("problem_code") != "raises_level":
            raise
        raise InvalidLevelError(
            f"{error.detail}; `mev kill` only lowers, use `mev resume --level {level}`"
        ) from None
    report(answer.json(), wait, json=json, settings=load_usable()[0])


def resume(
    reason: Reason = None,
    level: Annotated[str, typer.Option(help="ACTIVE, NO_NEW or REDUCING (any case).")] = "ACTIVE",
    module: Module = None,
    agent: Agent = None,
    wait: Wait = DEFAULT_WAIT_S,
    json: Json = False,
) -> None:
    """Let agents trade again: raise the level of all agents, a module or one agent.

    With APPROVALS_REQUIRED of 2 or more it creates a proposal that others approve (exit code 3).
    """
    level = _level(level)
    if level == "HALTED":
        raise InvalidLevelError("--level HALTED stops agents; use `mev kill`")
    reason = reason or (_ask("Reason: ") if sys.stdin.isatty() else "")
    if not reason:
        raise InvalidInputError("a reason is needed to raise the level; give it with --reason")
    answer = ask_api(
        "POST", _KILL_SWITCH, _target(module, agent) | {"level": level, "reason": reason}
    ).json()
    report(answer, wait, json=json)
    if held := _held_below(level, answer):
        raise HeldLowerError(f"raised to {level}, but {'; '.join(held)}")


def _held_below(level: str, raised: dict[str, Any]) -> list[str]:
    """Return the active orders that keep online agents of a raised target below `level`."""
    try:
        orders = list(ask_pages(COMMANDS, in_force="true"))
        online = [agent for agent in ask_pages(_AGENTS) if agent["online"]]
    except MevError as error:
        _say(f"cannot check for orders of a lower level: {error.detail}")
        return []
    lifted = [agent for agent in online if _is_for(raised["target"], agent)]
    held = []
    for order in orders:
        if order["kind"] != "level" or order["target"] == raised["target"]:
            continue
        is_lower = _LEVELS.index(order["body"]["level"]) < _LEVELS.index(level)
        if not is_lower or not any(_is_for(order["target"], agent) for agent in lifted):
            continue
        target = order["target"]
        names = [f"--module {name}" for name in target.get("modules", ())]
        names += [f"--agent {name}" for name in target.get("agent_ids", ())]
        remedies = " and ".join(f"`mev resume {name}`" for name in names) or "`mev resume`"
        held.append(f"{about(order)} is still in force; {remedies} ends it")
    return held


def _is_for(target: dict[str, Any], agent: dict[str, Any]) -> bool:
    if target.get("all"):
        return bool(agent["module"] != "control-plane")
    return agent["module"] in target.get("modules", ()) or agent["agent_id"] in target.get(
        "agent_ids", ()
    )


@command.command("send")
def send(
    module: Annotated[str, typer.Argument(help="Module of the agents.")],
    action: Annotated[str, typer.Argument(help="An action that the module declares.")],
    params: Annotated[str, typer.Option(help="Parameters as a JSON object.")] = "{}",
    agent: Annotated[list[str] | None, typer.Option(help="Only these agents.")] = None,
    wait: Wait = DEFAULT_WAIT_S,
    json: Json = False,
) -> None:
    """Send an action to agents and print their answers.

    Exit code 0: every agent that was online has executed it.
    """
    body: dict[str, Any] = {"module": module, "action": action, "params": _parsed(params)}
    if agent:
        body["target"] = {"agent_ids": agent}
    report(ask_api("POST", "/api/control/command", body).json(), wait, json=json)


@command.command("show")
def show(command_id: str, json: Json = False) -> None:
    """Show each agent's answer to a command."""
    print_answers(ask_api("GET", f"{COMMANDS}/{whole_id(command_id, COMMANDS)}").json(), json=json)


@command.command("list")
def list_commands(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20, json: Json = False
) -> None:
    """List the newest commands."""
    _list(f"{COMMANDS}?limit={limit}", _COMMAND_COLUMNS, _command, json=json)


@command.command("config")
def config(
    key: str,
    value: Annotated[str, typer.Argument(help="The new value, as JSON.")],
    module: Annotated[
        list[str] | None,
        typer.Option(help="Set it on this module's agents; may be repeated."),
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(help="Set it on this agent; may be repeated.")
    ] = None,
    wait: Wait = DEFAULT_WAIT_S,
    json: Json = False,
) -> None:
    """Change a setting of the running control plane, or of agents.

    For example `mev command config min_score 0.5 --module arbitrage`. Prints each answer as it
    arrives. Exit code 0: every agent or replica that was online has applied it.
    """
    target = {name: given for name, given in (("modules", module), ("agent_ids", agent)) if given}
    body = {"config_key": key, "config_value": _parsed(value)} | (
        {"target": target} if target else {}
    )
    report(ask_api("POST", "/api/control/config", body).json(), wait, json=json)


@command.command("policy")
def policy(
    document: Annotated[Path, typer.Argument(help="The policy as a JSON file.", exists=True)],
    wait: Wait = DEFAULT_WAIT_S,
    json: Json = False,
) -> None:
    """Set a policy; the same as `mev policy set`."""
    from mev.cli.policies import set_policy

    set_policy(document, wait, json)


@agents.command("list")
def list_agents(json: Json = False) -> None:
    """List the agents: level, state and last report."""
    _list(f"{_AGENTS}?limit=1000", _AGENT_COLUMNS, _agent, json=json)


@agents.command("revoke")
def revoke(agent_id: str) -> None:
    """Revoke an agent: its reports are ignored."""
    ask_api("DELETE", f"{_AGENTS}/{agent_id}")


@approvals.command("list")
def list_approvals(json: Json = False) -> None:
    """List proposals, newest first."""
    _list(
        _APPROVALS,
        ("id", "state", "level", "reason", "proposed_by", "approvers", "expires_at"),
        lambda item: item,
        json=json,
    )


@approvals.command("approve")
def approve(proposal_id: str, wait: Wait = DEFAULT_WAIT_S, json: Json = False) -> None:
    """Approve a proposal.

    The last approval needed issues the command; its answers are printed.
    """
    path = f"{_APPROVALS}/{whole_id(proposal_id, _APPROVALS)}"
    proposal = ask_api("POST", path, {"approve": True}).json()
    if not json:
        typer.echo(proposal["state"])
    if proposal.get("command_id"):
        report(ask_api("GET", f"{COMMANDS}/{proposal['command_id']}").json(), wait, json=json)
    elif json:
        typer.echo(json_module.dumps(proposal))
    else:
        typer.echo(
            f"{len(proposal['approvers'])} of {proposal['approvals_required']} persons agree"
        )


@approvals.command("reject")
def reject(proposal_id: str) -> None:
    """Reject a proposal."""
    typer.echo(
        ask_api(
            "POST", f"{_APPROVALS}/{whole_id(proposal_id, _APPROVALS)}", {"approve": False}
        ).json()["state"]
    )


def make_rotate(data_dir: Callable[[], Path]) -> Callable[[], None]:
    """Return the command that replaces the signing key of the system with folder `data_dir`."""

    def rotate() -> None:
        """Create a signing key, signed by this machine's root key, and activate it."""
        from mev.control.keys import rotation

        envelope = rotation(data_dir() / "control", now_ns())
        ask_api("POST", "/api/control/key-set", {"key_set": base64.b64encode(envelope).decode()})
        typer.echo("a new signing key is in force; agents take nothing more from the old one")
        typer.echo(_models_to_sign())

    return rotate


def _models_to_sign() -> str:
    """Return how many models the replaced key signed, and how to sign them again."""
    path, params = "/api/training/models", {"archived": "true", "limit": "1"}
    try:
        refused = ask_api("GET", path, params=params).json()["refused"]
    except MevError as error:
        return (
            f"the models cannot be read ({error.detail}); those that the old key signed must be "
            "signed again: `mev models sign --all`"
        )
    unsigned = [one for one in refused.values() if one.startswith("unsigned_manifest")]
    if not unsigned:
        return "no model needs to be signed again"
    return (
        f"{counted(len(unsigned), 'model')} must be signed again, until then agents refuse to load "
        "them: `mev models sign --all`"
    )


def _parsed(text: str) -> Any:
    try:
        return json_module.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"not JSON: {error}", code="invalid_json") from None


def _list(
    path: str,
    columns: tuple[str, ...],
    flat: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    json: bool,
) -> None:
    answer = ask_api("GET", path)
    if json:
        typer.echo(answer.text)
        return
    print_table(
        columns,
        [
            [_cell(name, flat(item).get(name)) for name in columns]
            for item in answer.json()["items"]
        ],
        spare=_SPARE,
    )


def _command(item: dict[str, Any]) -> dict[str, Any]:
    state = "refused" if item["refused"] else "superseded" if item["superseded_by"] else ""
    return {**item, **item["states"], "state": state}


def _agent(item: dict[str, Any]) -> dict[str, Any]:
    stepped_down = [item["stepped_down"]] if item["stepped_down"] else []
    return item | {
        "state": "online" if item["online"] else "OFFLINE",
        "trouble": ", ".join([*stepped_down, *item["blocked_by"]]),
    }


def _cell(name: str, value: object) -> object:
    if value is None:
        return ""
    return (
        Id(value)
        if name == "id"
        else str(value)[:19].replace("T", " ")
        if name in _TIMES
        else value
    )


def _level(text: str) -> str:
    if text.upper() not in _LEVELS:
        raise InvalidLevelError(f"--level {text}: expected {', '.join(_LEVELS)}")
    return text.upper()


def _target(module: str | None, agent: str | None) -> dict[str, Any]:
    if module and agent:
        raise InvalidInputError("name a module or an agent, not both")
    return {"scope": "module" if module else "agent" if agent else "all"} | (
        {"target": module or agent} if module or agent else {}
    )


def _stop_reason(given: str | None) -> str:
    """Return the reason of a stop; a missing or invalid reason does not prevent the stop."""
    if given is None and sys.stdin.isatty():
        given = _ask(f"Reason (Enter for none; the stop is sent after {_ASK_S} s in any case): ")
    return (given or _NO_REASON).encode(errors="replace").decode()[:_LONGEST_REASON]


def _ask(question: str) -> str:
    """Return the line typed within the time limit, or an empty string."""
    typer.echo(question, err=True, nl=False)
    if not select.select([sys.stdin], [], [], _ASK_S)[0]:
        typer.echo("", err=True)
        return ""
    return sys.stdin.buffer.readline().decode(errors="replace").strip()


def _say(text: str) -> None:
    typer.echo(f"mev: {shown(text)}", err=True)
