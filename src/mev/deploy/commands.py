"""``mev deploy``, ``mev deployments``."""

import json as json_module
import time
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from mev.core.errors import InvalidInputError, MevError
from mev.core.terminal import print_table
from mev.core.text import shown
from mev.deploy.model import Stage
from mev.deploy.routes import PATH
from mev.wiring import ask_api

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
_POLL_S = 0.3
_LISTED = ("id", "model", "module", "stage", "state", "created_at", "because")
_STEPS = ("stage", "at", "by", "role", "model", "command_id", "agent_id", "state", "reason_code", "detail")
_RULES = ("rule", "value", "bound", "verdict", "detail")
_FIGURES = ("role", "model", "agents", "scored", "failed", "latency_p50_us", "latency_p99_us", "score_psi", "worst_feature_psi")
_ENDED_WELL, _ENDED_BADLY = frozenset({"ready", "done"}), frozenset({"rolled_back", "superseded", "failed"})
_ID_DIGITS = 12


class DeploymentNotDoneError(MevError):
    """The model did not get where it was wanted."""

    code = "deployment_not_done"


class InvalidRuleError(InvalidInputError):
    """An option is no rule."""

    code = "invalid_rule"


def deploy(
    model: Annotated[str, typer.Argument(help="Id or alias of a model.")],
    stage: Annotated[Stage, typer.Option(help="Where to; rollback takes it back.")],
    module: Annotated[str | None, typer.Option(help="Agents' module; may be left out where there is one.")] = None,
    share: Annotated[
        float | None, typer.Option(help="shadow: of the opportunities; canary: of the living agents. 0.1 when not given.")
    ] = None,
    agent: Annotated[list[str] | None, typer.Option(help="canary: this agent, in the place of a share; may be given again.")] = None,
    form: Annotated[str | None, typer.Option(help="mevt or so.")] = None,
    rule: Annotated[list[str] | None, typer.Option(help="A rule as NAME=VALUE, such as hold_s=60; `off` turns a bound off.")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Go on by itself to production as soon as the rules hold.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it is in the audit trail.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the rules hold; fails when it is rolled back.")] = False,
    json: Json = False,
) -> None:
    """Deploy a model, bring it to another stage, or take it back."""
    given: dict[str, Any] = {"module": module, "share": share, "agent_ids": agent or None, "form": form}
    given["rules"] = _rules(rule or []) or None
    body: dict[str, Any] = {"stage": stage.value, "promote": promote, "reason": reason}
    body |= {name: value for name, value in given.items() if value is not None}
    answer = ask_api("POST", f"{PATH}/models/{quote(model, safe='')}/deploy", body).json()
    if wait and stage is not Stage.ROLLBACK:
        answer = _followed(answer)
    _show(answer, json=json)
    if wait and stage is not Stage.ROLLBACK and answer["state"] in _ENDED_BADLY:
        raise DeploymentNotDoneError(f"deployment {answer['id']} is {answer['state']}: {answer['because']}")


def deployments(
    deployment_id: Annotated[str | None, typer.Argument(help="Show this one.")] = None,
    module: Annotated[str | None, typer.Option(help="Only this module.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, for instance watching.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    json: Json = False,
) -> None:
    """List deployments, newest first, or show one: its steps, the agents' answers, figures and rules."""
    if deployment_id is not None:
        _show(ask_api("GET", f"{PATH}/deployments/{quote(deployment_id, safe='')}").json(), json=json)
        return
    filters = {"module": module, "state": state, "limit": limit}
    answer = ask_api("GET", f"{PATH}/deployments?{urlencode({name: value for name, value in filters.items() if value is not None})}")
    if json:
        typer.echo(answer.text)
        return
    print_table(_LISTED, [_cells(_listed(item), _LISTED) for item in answer.json()["items"]])


def _rules(given: list[str]) -> dict[str, Any]:
    rules = {}
    for text in given:
        name, sign, value = text.partition("=")
        try:
            rules[name] = None if sign and value == "off" else json_module.loads(value)
        except ValueError:
            raise InvalidRuleError(f"rule {text!r}: expected NAME=VALUE, such as hold_s=60 or max_score_psi=off") from None
    return rules


def _followed(answer: dict[str, Any]) -> dict[str, Any]:
    """Say what each agent answers until the deployment waits for nobody any more, and return it."""
    said: dict[str, str] = {}
    while True:
        _say("deployment", f"{answer['stage']}: {answer['state']}", said)
        for item in _placed(answer):
            away = "" if item["alive"] else ", away"
            why = f", {item['reason_code']}: {item['detail']}" if item["reason_code"] else ""
            _say(f"{answer['stage']} {item['agent_id']}", f"{item['state']}{away}{why}", said)
        waits = answer["state"] == "ready" and answer["promote"]
        if answer["state"] in _ENDED_BADLY or (answer["state"] in _ENDED_WELL and not waits):
            return answer
        time.sleep(_POLL_S)
        answer = ask_api("GET", f"{PATH}/deployments/{answer['id']}").json()


def _say(what: str, news: str, said: dict[str, str]) -> None:
    if said.get(what) != news:
        said[what] = news
        typer.echo(shown(f"{what}: {news}"), err=True)


def _placed(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the answers to the command that placed the model last."""
    forward = [step for step in answer["steps"] if step["stage"] != Stage.ROLLBACK]
    found: list[dict[str, Any]] = forward[-1]["commands"][0]["deliveries"] if forward else []
    return found


def _show(answer: dict[str, Any], *, json: bool) -> None:
    if json:
        typer.echo(json_module.dumps(answer))
        return
    typer.echo(shown(f"deployment {answer['id']}: model {answer['model_id']} in {answer['module']}, {answer['stage']}, {answer['state']}"))
    if answer["because"]:
        typer.echo(shown(f"because {answer['because']}"))
    print_table(_STEPS, [_cells(row, _STEPS) for step in answer["steps"] for row in _rows(step)])
    for title, columns in (("rules", _RULES), ("figures", _FIGURES)):
        if answer[title]:
            typer.echo("")
            print_table(columns, [_cells(_listed(row), columns) for row in answer[title]])


def _rows(step: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for command in step["commands"]:
        about = {name: step[name] for name in ("stage", "at", "by")} | {"role": command["role"], "command_id": command["command_id"]}
        about["model"] = (command["model_id"] or "none")[:_ID_DIGITS]
        answers = [{name: one[name] for name in ("agent_id", "state", "reason_code", "detail")} for one in command["deliveries"] or ()]
        rows += [about | one for one in answers or [{}]]
    return rows or [step]


def _listed(item: dict[str, Any]) -> dict[str, Any]:
    return item | {"model": item.get("model_id", "")[:_ID_DIGITS]}


def _cells(row: dict[str, Any], columns: tuple[str, ...]) -> list[object]:
    return ["" if (value := row.get(name)) is None else f"{value:.6g}" if isinstance(value, float) else value for name in columns]
