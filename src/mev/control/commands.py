"""``mev kill``, ``mev command``, ``mev agents``, ``mev approvals``, ``mev policy``, ``mev keys``."""

import base64
import json as json_module
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mev.control import keys as keys_module
from mev.core.clock import now_ns
from mev.core.errors import InvalidInputError
from mev.core.terminal import Id, print_table
from mev.store.folder import NotRunningError
from mev.wiring import ApiError, ask_api, poll, whole_id

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for the agents' answers; who has not answered by then is STALE.")]
Items = list[dict[str, Any]]
command = typer.Typer(help="Order actions, and see what became of orders.", no_args_is_help=True)
agents = typer.Typer(help="The fleet.", no_args_is_help=True)
approvals = typer.Typer(help="What waits for more people.", no_args_is_help=True)
_COMMAND_COLUMNS = ("id", "kind", "issuer", "issued_at", "SYNCED", "STALE", "ERROR", "NOT_SENT")
_AGENT_COLUMNS = ("agent_id", "module", "online", "level", "ordered_level", "stepped_down", "last_seen", "clock_offset_ms")
_TIMES = frozenset({"issued_at", "last_seen", "expires_at"})
_COMMANDS, _APPROVALS = "/api/control/commands", "/api/control/approvals"
_WAIT_S = 3.0
_POLL_S = 0.1
_UNANSWERED = frozenset({"NOT_SENT", "STALE"})
_DELIVERY_COLUMNS = ("agent_id", "state", "latency_ms", "reason_code", "detail")


class InvalidJsonError(InvalidInputError):
    """An option is no JSON."""

    code = "invalid_json"


def kill(
    reason: Annotated[str, typer.Option(help="Why; it is in the audit trail.")],
    level: Annotated[str, typer.Option(help="HALTED, REDUCING, NO_NEW, or ACTIVE to allow trading again.")] = "HALTED",
    module: Annotated[str | None, typer.Option(help="Only this module.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent.")] = None,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds after which the level before returns.")] = None,
    wait: Wait = _WAIT_S,
    json: Json = False,
) -> None:
    """Stop everybody, a module or one agent at once; raising the level again needs as many people as APPROVALS_REQUIRED.

    What it prints is what each agent has answered, as soon as all have or after `--wait` seconds.
    """
    if module and agent:
        raise InvalidJsonError("name a module or an agent, not both")
    scope = "module" if module else "agent" if agent else "all"
    body = {"scope": scope, "target": module or agent, "level": level, "reason": reason, "duration": duration}
    given = {name: value for name, value in body.items() if value is not None}
    _show(_answered(ask_api("POST", "/api/control/kill-switch", given).json(), wait), json=json)


@command.command("send")
def send(
    module: Annotated[str, typer.Argument(help="Module whose agents are meant.")],
    action: Annotated[str, typer.Argument(help="An action the module declared.")],
    params: Annotated[str, typer.Option(help="Parameters as a JSON object.")] = "{}",
    agent: Annotated[list[str] | None, typer.Option(help="Only these agents.")] = None,
    wait: Wait = _WAIT_S,
    json: Json = False,
) -> None:
    """Order an action, and print what each agent has answered, as soon as all have or after `--wait` seconds."""
    body: dict[str, Any] = {"module": module, "action": action, "params": _parsed(params)}
    if agent:
        body["target"] = {"agent_ids": agent}
    _show(_answered(ask_api("POST", "/api/control/command", body).json(), wait), json=json)


@command.command("show")
def show(command_id: str, json: Json = False) -> None:
    """Show what each agent answered."""
    _show(ask_api("GET", f"{_COMMANDS}/{whole_id(command_id, _COMMANDS)}").json(), json=json)


@command.command("list")
def list_commands(limit: Annotated[int, typer.Option(min=1, max=1000)] = 20, json: Json = False) -> None:
    """List the newest commands."""
    _list(f"{_COMMANDS}?limit={limit}", _COMMAND_COLUMNS, lambda item: item | item["states"], json=json)


@command.command("config")
def config(
    key: str,
    value: Annotated[str, typer.Argument(help="The new value, as JSON.")],
    module: Annotated[list[str] | None, typer.Option(help="A setting of this module's agents; may be given again.")] = None,
    agent: Annotated[list[str] | None, typer.Option(help="A setting of this agent; may be given again.")] = None,
    wait: Wait = _WAIT_S,
    json: Json = False,
) -> None:
    """Change a setting of the running control plane, or of agents: `mev command config min_score 0.9 --module arbitrage`.

    What it prints is what each has answered, as soon as all have or after `--wait` seconds.
    """
    target = {name: given for name, given in (("modules", module), ("agent_ids", agent)) if given}
    body = {"config_key": key, "config_value": _parsed(value)} | ({"target": target} if target else {})
    _show(_answered(ask_api("POST", "/api/control/config", body).json(), wait), json=json)


@command.command("policy")
def policy(document: Annotated[Path, typer.Argument(help="The policy as a JSON file.", exists=True)], json: Json = False) -> None:
    """Set a policy and show what changes."""
    answer = ask_api("POST", "/api/control/policy", _parsed(document.read_text())).json()
    _show(answer, json=json)
    if not json:
        print_table(("field", "before", "after"), [(name, *change) for name, change in answer["diff"].items()])


@agents.command("list")
def list_agents(json: Json = False) -> None:
    """List the fleet: what each agent may do, and when it last said so."""
    _list("/api/control/agents?limit=1000", _AGENT_COLUMNS, lambda item: item, json=json)


@agents.command("revoke")
def revoke(agent_id: str) -> None:
    """Let an agent go: its reports count no more."""
    ask_api("DELETE", f"/api/control/agents/{agent_id}")


@approvals.command("list")
def list_approvals(json: Json = False) -> None:
    """List proposals, newest first."""
    _list(_APPROVALS, ("id", "state", "level", "reason", "proposed_by", "approvers", "expires_at"), lambda item: item, json=json)


@approvals.command("approve")
def approve(proposal_id: str) -> None:
    """Approve a proposal."""
    typer.echo(ask_api("POST", f"{_APPROVALS}/{whole_id(proposal_id, _APPROVALS)}", {"approve": True}).json()["state"])


@approvals.command("reject")
def reject(proposal_id: str) -> None:
    """Reject a proposal."""
    typer.echo(ask_api("POST", f"{_APPROVALS}/{whole_id(proposal_id, _APPROVALS)}", {"approve": False}).json()["state"])


def make_rotate(data_dir: Callable[[], Path]) -> Callable[[], None]:
    """Return the command that replaces the signing key of the system on `data_dir`."""

    def rotate() -> None:
        """Make a new signing key, signed by the root key of this machine, and put it in force in the running system."""
        envelope = keys_module.rotation(data_dir() / "control", now_ns())
        ask_api("POST", "/api/control/key-set", {"key_set": base64.b64encode(envelope).decode()})
        typer.echo("a new signing key is in force; agents take nothing more from the old one")

    return rotate


def _parsed(text: str) -> Any:
    try:
        return json_module.loads(text)
    except ValueError as error:
        raise InvalidJsonError(f"not JSON: {error}") from None


def _answered(answer: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """Return the command in `answer` once every agent has answered it, or as it is after `wait_s`; a proposal as it is."""
    deadline = time.monotonic() + wait_s
    while any(item["state"] in _UNANSWERED for item in answer.get("deliveries", ())) and time.monotonic() < deadline:
        time.sleep(min(_POLL_S, wait_s))
        try:
            answer = poll(f"{_COMMANDS}/{answer['id']}", patience_s=max(0.0, deadline - time.monotonic())).json()
        except (ApiError, NotRunningError):  # the order is out; that its answers cannot be read must not look as if it were not
            break
    return answer


def _list(path: str, columns: tuple[str, ...], flat: Callable[[dict[str, Any]], dict[str, Any]], *, json: bool) -> None:
    answer = ask_api("GET", path)
    if json:
        typer.echo(answer.text)
        return
    print_table(columns, [[_cell(name, flat(item).get(name)) for name in columns] for item in answer.json()["items"]])


def _cell(name: str, value: object) -> object:
    if value is None:
        return ""
    return Id(value) if name == "id" else str(value)[:19].replace("T", " ") if name in _TIMES else value


def _show(answer: dict[str, Any], *, json: bool) -> None:
    if json:
        typer.echo(json_module.dumps(answer))
    elif answer.get("state"):
        typer.echo(f"proposal {answer['id']}: {answer['state']}; {len(answer['approvers'])} of {answer['approvals_required']} people agree")
    else:
        typer.echo(f"command {answer['id']}: {answer['kind']}")
        print_table(
            _DELIVERY_COLUMNS, [["" if item[name] is None else item[name] for name in _DELIVERY_COLUMNS] for item in answer["deliveries"]]
        )
