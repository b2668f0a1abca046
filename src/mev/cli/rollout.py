"""Commands ``mev deploy`` and ``mev deployments``."""

import json as json_module
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from mev.cli.api import ask_api, whole_id
from mev.cli.rollout_progress import ENDED_BADLY, follow, unanswered
from mev.cli.tables import Id, print_table
from mev.core.errors import InvalidInputError, MevError
from mev.core.text import shown
from mev.rollout.model import Stage

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
_PATH = "/api/training"
_LISTED = ("id", "model", "module", "stage", "state", "created_at", "because")
_STEPS = ("stage", "at", "by", "share", "skipped", "early", "reason")
_ANSWERS = ("stage", "role", "model", "agent", "alive", "state", "because", "command_id")
_RULES = ("rule", "value", "bound", "verdict", "detail")
_FIGURES = (
    "role",
    "model",
    "agents",
    "scored",
    "failed",
    "latency_p50_us",
    "latency_p99_us",
    "score_psi",
    "worst_feature_psi",
)
_IDS = frozenset({"id", "model", "command_id"})
_TIMES = frozenset({"at", "created_at"})


class DeploymentNotDoneError(MevError):
    """The deployment did not reach its stage."""

    code = "deployment_not_done"


def deploy(
    model: Annotated[
        str, typer.Argument(help="The id of a model, its first 8 digits or more, or an alias.")
    ],
    stage: Annotated[Stage, typer.Option(help="Target stage; rollback removes the model.")],
    module: Annotated[
        str | None, typer.Option(help="Module of the agents; optional if there is only one.")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the opportunities (shadow) or of the live agents (canary); "
            "default: 0.1."
        ),
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="canary: this agent instead of a share; may be repeated."),
    ] = None,
    form: Annotated[str | None, typer.Option(help="Form of the model, such as mevt.")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="A rule as NAME=VALUE, such as hold_s=60; `off` turns a bound off."),
    ] = None,
    promote: Annotated[
        bool,
        typer.Option(
            "--promote", help="Promote to production automatically as soon as the rules hold."
        ),
    ] = False,
    reason: Annotated[str, typer.Option(help="Reason for the audit trail.")] = "",
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Wait until the rules hold or the rollback is done; fails otherwise."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Deploy a model, move it to another stage, or roll it back."""
    given: dict[str, Any] = {
        "module": module,
        "share": share,
        "agent_ids": agent or None,
        "form": form,
    }
    given["rules"] = _rules(rule or []) or None
    body: dict[str, Any] = {"stage": stage.value, "promote": promote, "reason": reason}
    body |= {name: value for name, value in given.items() if value is not None}
    answer = ask_api("POST", f"{_PATH}/models/{quote(model, safe='')}/deploy", body).json()
    if "approvals_required" in answer:
        _show_proposal(answer, json=json, wait=wait)
        return
    if wait:
        answer = follow(answer)
    _show(answer, json=json)
    if wait:
        _check_done(answer, stage)


def deployments(
    deployment_id: Annotated[
        str | None, typer.Argument(help="Show this one; its first 8 digits or more are enough.")
    ] = None,
    module: Annotated[str | None, typer.Option(help="Only this module.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only in this state, for instance watching.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    json: Json = False,
) -> None:
    """List deployments, newest first, or show one: steps, answers, metrics and rules."""
    if deployment_id is not None:
        deployment_id = whole_id(deployment_id, f"{_PATH}/deployments")
        _show(
            ask_api("GET", f"{_PATH}/deployments/{quote(deployment_id, safe='')}").json(), json=json
        )
        return
    filters = {"module": module, "state": state, "limit": limit}
    answer = ask_api(
        "GET",
        f"{_PATH}/deployments?"
        f"{urlencode({name: value for name, value in filters.items() if value is not None})}",
    )
    if json:
        typer.echo(answer.text)
        return
    print_table(_LISTED, [_cells(_listed(item), _LISTED) for item in answer.json()["items"]])


def _show_proposal(answer: dict[str, Any], *, json: bool, wait: bool) -> None:
    text = (
        f"proposal {answer['id']}: {answer['state']}; {len(answer['approvers'])} of "
        f"{answer['approvals_required']} people agree"
    )
    typer.echo(json_module.dumps(answer) if json else text)
    if wait:
        raise DeploymentNotDoneError(
            f"{text}; another person has to run: mev approvals approve {answer['id']}"
        )


def _rules(given: list[str]) -> dict[str, Any]:
    rules = {}
    for text in given:
        name, sign, value = text.partition("=")
        try:
            rules[name] = None if sign and value == "off" else json_module.loads(value)
        except ValueError:
            raise InvalidInputError(
                f"rule {text!r}: expected NAME=VALUE, such as hold_s=60 or max_score_psi=off",
                code="invalid_rule",
            ) from None
    return rules


def _check_done(answer: dict[str, Any], stage: Stage) -> None:
    silent = ", ".join(unanswered(answer))
    if stage is not Stage.ROLLBACK and answer["state"] in ENDED_BADLY:
        rest = f"; {silent} did not give it back" if silent else ""
        raise DeploymentNotDoneError(
            f"deployment {answer['id']} is {answer['state']}: {answer['because']}{rest}"
        )
    if stage is Stage.ROLLBACK and silent:
        raise DeploymentNotDoneError(
            f"deployment {answer['id']} is {answer['state']}, but {silent} did not give the "
            "model back"
        )


def _show(answer: dict[str, Any], *, json: bool) -> None:
    if json:
        typer.echo(json_module.dumps(answer))
        return
    typer.echo(
        shown(
            f"deployment {answer['id']}: model {answer['model_id']} in {answer['module']}, "
            f"{answer['stage']}, {answer['state']}"
        )
    )
    if answer["because"]:
        typer.echo(shown(f"because {answer['because']}"))
    for warning in answer.get("warnings") or ():
        typer.echo(shown(f"warning: {warning['detail']}\n  {warning['command']}"))
    steps = answer["steps"]
    tables = [
        (_STEPS, [_step(step) for step in steps]),
        (_ANSWERS, [row for step in steps for row in _answers(step)]),
    ]
    for columns, rows in (*tables, (_RULES, answer["rules"]), (_FIGURES, answer["figures"])):
        if rows:
            typer.echo("")
            print_table(columns, [_cells(_listed(row), columns) for row in rows])


def _step(step: dict[str, Any]) -> dict[str, Any]:
    share = next(
        (command["share"] for command in step["commands"] if command["share"] is not None), None
    )
    return step | {
        "share": share,
        "skipped": ", ".join(step["skipped"]),
        "early": "early" if step["early"] else "",
    }


def _answers(step: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for command in step["commands"]:
        about = {"stage": step["stage"], "model_id": command["model_id"] or "none"}
        about |= {name: command[name] for name in ("role", "command_id")}
        rows += [about | _answer(one) for one in command["deliveries"] or [{}]]
    return rows


def _answer(delivery: dict[str, Any]) -> dict[str, Any]:
    because = ": ".join(said for name in ("reason_code", "detail") if (said := delivery.get(name)))
    return {"agent": delivery.get("agent_id"), "because": because} | {
        name: delivery.get(name) for name in ("alive", "state")
    }


def _listed(item: dict[str, Any]) -> dict[str, Any]:
    return item | {"model": item.get("model_id", "")}


def _cells(row: dict[str, Any], columns: tuple[str, ...]) -> list[object]:
    return [_cell(name, row.get(name)) for name in columns]


def _cell(name: str, value: Any) -> object:
    if value is None:
        return ""
    if name in _IDS:
        return Id(value)
    if name in _TIMES:
        return str(value)[:19].replace("T", " ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else value
