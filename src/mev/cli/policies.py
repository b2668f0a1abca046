"""Command ``mev policy``."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from mev.cli.api import ask_api
from mev.cli.command_answers import DEFAULT_WAIT_S, Json, Wait, is_proposal, print_answers, report
from mev.cli.tables import Id, print_table
from mev.core.errors import InvalidInputError
from mev.core.text import is_money, shown, sol

PolicyId = Annotated[str, typer.Argument(help="The id of a policy, as `mev policy list` shows it.")]
policy = typer.Typer(
    help="List, show, set and roll back policies: the limits of agents.", no_args_is_help=True
)
_PATH = "/api/control/policies"
_LISTED = (
    "policy_id",
    "policy_type",
    "state",
    "acknowledged_by",
    "refused_by",
    "waiting_for",
    "enabled",
    "issued_at",
    "issuer",
)
_VERSIONS = ("command", "state", "issued_at", "issuer", "acknowledged_by", "refused_by", "changes")
_NAMED = 3


@policy.command("list")
def list_policies(json: Json = False) -> None:
    """List policies with the agents that acknowledged and refused them."""
    answer = ask_api("GET", f"{_PATH}?limit=1000")
    if json:
        typer.echo(answer.text)
        return
    print_table(
        _LISTED, [[_listed(item)[name] for name in _LISTED] for item in answer.json()["items"]]
    )


@policy.command("show")
def show_policy(policy_id: PolicyId, json: Json = False) -> None:
    """Show a policy: its limits, each agent's answer, and its versions."""
    path = f"{_PATH}/{quote(policy_id, safe='')}"
    answer = ask_api("GET", path)
    versions = ask_api("GET", f"{path}/versions?limit=20").json()["items"]
    if json:
        typer.echo(json_module.dumps(answer.json() | {"versions": versions}))
        return
    item = answer.json()
    body = item["body"]
    typer.echo(
        shown(
            f"policy {policy_id} ({body['policy_type']}): {item['state']}"
            + ("" if body["enabled"] else ", not enabled")
        )
    )
    rows = [(name, "threshold", _limit(name, value)) for name, value in body["thresholds"].items()]
    rows += [
        (rule["field"], rule["operator"], _limit(rule["field"], rule["value"]))
        for rule in body["rules"]
    ]
    if rows:
        print_table(("limit", "", "value"), rows)
    typer.echo("")
    print_answers(item, json=False)
    typer.echo("")
    print_table(_VERSIONS, [[_version(one)[name] for name in _VERSIONS] for one in versions])


@policy.command("set")
def set_policy(
    document: Annotated[
        Path, typer.Argument(help="The policy as a JSON file.", exists=True, dir_okay=False)
    ],
    wait: Wait = DEFAULT_WAIT_S,
    json: Json = False,
) -> None:
    """Set a policy, show the changes, and print each agent's answer as it arrives."""
    try:
        content = json_module.loads(document.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{document}: {error}", code="invalid_policy_file") from None
    _issue("/api/control/policy", content, wait, json=json)


@policy.command("rollback")
def rollback_policy(policy_id: PolicyId, wait: Wait = DEFAULT_WAIT_S, json: Json = False) -> None:
    """Roll back to the last acknowledged version, and print each agent's answer as it arrives."""
    _issue(f"{_PATH}/{quote(policy_id, safe='')}/rollback", None, wait, json=json)


def _issue(path: str, content: object, wait_s: float, *, json: bool) -> None:
    answer = ask_api("POST", path, content).json()
    if not json and not is_proposal(answer):
        changes = [
            (name, _limit(name, before), _limit(name, after))
            for name, (before, after) in answer["diff"].items()
        ]
        if changes:
            print_table(("field", "before", "after"), changes)
        else:
            typer.echo("nothing changes")
    report(answer, wait_s, json=json)


def _listed(item: dict[str, Any]) -> dict[str, object]:
    body = item["body"]
    return {
        "policy_id": item["policy_id"],
        "policy_type": body["policy_type"],
        "state": item["state"],
        "enabled": "yes" if body["enabled"] else "no",
        "issued_at": item["issued_at"][:19].replace("T", " "),
        "issuer": item["issuer"],
        "acknowledged_by": _names(item["acknowledged_by"]),
        "refused_by": _names([one["agent_id"] for one in item["refused_by"]]),
        "waiting_for": _names(item["waiting_for"]),
    }


def _version(item: dict[str, Any]) -> dict[str, object]:
    changes = "; ".join(
        f"{name}: {_limit(name, before)} -> {_limit(name, after)}"
        for name, (before, after) in item["diff"].items()
    )
    return _listed(item) | {"command": Id(item["id"]), "changes": changes}


def _names(agent_ids: list[str]) -> str:
    rest = len(agent_ids) - _NAMED
    return ", ".join(agent_ids[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _limit(name: str, value: object) -> str:
    """Return a threshold or the value of a rule as text."""
    if not is_money(name) or value is None:
        return _text(value)
    try:
        return sol(float(str(value)), exact=True)
    except ValueError:
        return _text(value)


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json_module.dumps(value)
