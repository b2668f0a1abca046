"""Print the agents' answers to a command as they arrive, and return an exit code.

0: every agent that was online when the command was issued has executed it. 1: an agent has not, or
the answers cannot be read. 3: the command needs more approvals.
"""

import json
import sys
import time
from collections.abc import Container, Sequence
from typing import Annotated, Any

import typer

from mev.cli.api import poll
from mev.cli.tables import print_table
from mev.core.errors import MevError
from mev.core.text import counted, shown
from mev.settings import Settings

DEFAULT_WAIT_S = 10.0
Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
Wait = Annotated[
    float,
    typer.Option(
        min=0,
        help="Maximum seconds to wait for the agents' answers; exit code 1 when an online "
        "agent has not obeyed by then.",
    ),
]
WAITS_FOR_APPROVAL = 3
COMMANDS = "/api/control/commands"
COLUMNS = ("agent_id", "state", "latency_ms", "reason_code", "detail")
_POLL_S = 0.1
_UNANSWERED = frozenset({"NOT_SENT", "STALE"})
_NAMED = 5
_COLOURS = {"SYNCED": "green", "STALE": "yellow", "NOT_SENT": "yellow", "ERROR": "red"}


def report(
    answer: dict[str, Any], wait_s: float, *, json: bool, settings: Settings | None = None
) -> None:
    """Print the agents' answers to a command, or the proposal if it needs approval.

    :raises MevError: when an online agent has not executed the command within `wait_s`.
    :raises typer.Exit: with code 3 when the command needs more approvals.
    """
    if is_proposal(answer):
        _print_proposal(answer, json=json)
        raise typer.Exit(WAITS_FOR_APPROVAL)
    printed = None if json else AnswerTable(answer)
    problem = ""
    try:
        answer = _awaited(answer, wait_s, printed, settings)
    except MevError as error:
        problem = f"it was issued, but the answers cannot be read: {error.detail}"
    if printed:
        printed.finish(answer)
    else:
        typer.echo(_dumped(answer))
    if problem := problem or _problem(answer, wait_s):
        raise MevError(
            f"command {answer['id']}: {problem}; `mev command show {answer['id']}` asks again",
            code="not_obeyed",
        )


def is_proposal(answer: dict[str, Any]) -> bool:
    """Return whether the API created a proposal instead of a command."""
    return "approvals_required" in answer


def _print_proposal(proposal: dict[str, Any], *, json: bool) -> None:
    if json:
        typer.echo(_dumped(proposal))
        return
    missing = max(0, proposal["approvals_required"] - len(proposal["approvers"]))
    typer.echo(
        f"proposed, needs {counted(missing, 'more person')}: `mev approvals approve "
        f"{proposal['id']}`"
    )


def _awaited(
    answer: dict[str, Any], wait_s: float, printed: "AnswerTable | None", settings: Settings | None
) -> dict[str, Any]:
    """Return the command when all agents that were online have answered, or after `wait_s`."""
    deadline, offline = time.monotonic() + wait_s, None
    while any(item["state"] in _UNANSWERED for item in answer["deliveries"]):
        time.sleep(max(0.0, min(_POLL_S, deadline - time.monotonic())))
        left_s = max(0.0, deadline - time.monotonic())
        answer = poll(f"{COMMANDS}/{answer['id']}", patience_s=left_s, settings=settings).json()
        if printed:
            printed.update(answer)
        # An agent that goes offline after the command was issued is still waited for.
        if offline is None:
            offline = {
                item["agent_id"] for item in answer["deliveries"] if not item.get("online", True)
            }
        answer["offline"] = sorted(offline)
        if not left_s or not any(_is_awaited(item, offline) for item in answer["deliveries"]):
            break
    return answer


def _is_awaited(delivery: dict[str, Any], offline: Container[str]) -> bool:
    return delivery["state"] == "NOT_SENT" or (
        delivery["state"] == "STALE" and delivery["agent_id"] not in offline
    )


def _problem(answer: dict[str, Any], wait_s: float) -> str:
    """Return why a command was not executed, or an empty string."""
    if answer.get("published") is False:
        return "not sent: Kafka has not taken it; it is sent when Kafka does"
    if answer.get("superseded_by"):
        return f"command {answer['superseded_by']} took its place"
    offline = answer.get("offline", ())
    online = [
        item
        for item in answer["deliveries"]
        if item["agent_id"] not in offline or item["state"] == "NOT_SENT"
    ]
    refused = [item["agent_id"] for item in online if item["state"] == "ERROR"]
    silent = [item["agent_id"] for item in online if item["state"] in _UNANSWERED]
    parts = [f"{listed(refused)} refused it"] if refused else []
    parts += [f"{listed(silent)} did not answer within {wait_s:g} s"] if silent else []
    return " and ".join(parts)


def listed(agent_ids: Sequence[str]) -> str:
    """Return the first agents, and the number of the others."""
    rest = len(agent_ids) - _NAMED
    return ", ".join(agent_ids[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


class AnswerTable:
    """A table that prints a row when an agent answers."""

    def __init__(self, answer: dict[str, Any]) -> None:
        typer.echo(shown(f"command {answer['id']}: {about(answer)}"))
        self._width = max((len(item["agent_id"]) for item in answer["deliveries"]), default=0)
        self._printed: set[str] = set()
        self.update(answer)

    def update(self, answer: dict[str, Any]) -> None:
        """Print the new answers."""
        self._print([item for item in answer["deliveries"] if item["state"] not in _UNANSWERED])

    def finish(self, answer: dict[str, Any]) -> None:
        """Print the agents without an answer and the number that executed the command."""
        self.update(answer)
        self._print(answer["deliveries"])
        deliveries = answer["deliveries"]
        if not deliveries:
            typer.echo("no agent that it is for is enrolled")
            return
        obeyed = sum(item["state"] == "SYNCED" for item in deliveries)
        offline = sum(
            not item.get("online", True) for item in deliveries if item["state"] in _UNANSWERED
        )
        typer.echo(
            f"{obeyed} of {counted(len(deliveries), 'agent')} obeyed"
            + (f", {offline} offline" if offline else "")
        )

    def _print(self, deliveries: Sequence[dict[str, Any]]) -> None:
        for item in deliveries:
            if item["agent_id"] in self._printed:
                continue
            if not self._printed:
                self._line(COLUMNS)
            self._printed.add(item["agent_id"])
            self._line(
                [
                    *("" if item[name] is None else str(item[name]) for name in COLUMNS[:-1]),
                    _detail(item),
                ]
            )
        sys.stdout.flush()

    def _line(self, cells: Sequence[str]) -> None:
        agent_id, state, latency_ms, reason_code, detail = cells
        width = max(self._width, len(COLUMNS[0]))
        coloured = typer.style(f"{state:<8}", fg=_COLOURS.get(state))  # no colours in a pipe
        rest = shown(f"{latency_ms:>10}  {reason_code:<11}  {detail}").replace("\n", "\\n")
        typer.echo(f"{shown(agent_id):<{width}}  {coloured}  {rest}".rstrip())


def _detail(item: dict[str, Any]) -> str:
    if item["state"] in _UNANSWERED and not item.get("online", True):
        return "offline: it obeys when it is back, and its lease stops it until then"
    return str(item["detail"] or "")


def print_answers(answer: dict[str, Any], *, json: bool) -> None:
    """Print a command and its current answers."""
    if json:
        typer.echo(_dumped(answer))
        return
    typer.echo(shown(f"command {answer['id']}: {about(answer)}"))
    rows = [
        [*("" if item[name] is None else item[name] for name in COLUMNS[:-1]), _detail(item)]
        for item in answer["deliveries"]
    ]
    print_table(COLUMNS, rows)


def about(command: dict[str, Any]) -> str:
    """Return the order and the target of a command as text."""
    body, target = command.get("body", {}), command.get("target", {})
    names = {
        "level": ("level",),
        "action": ("module", "action"),
        "policy": ("policy_id",),
        "config": ("config_key", "config_value_json"),
    }
    words = [
        command["kind"],
        *(str(body[name]) for name in names.get(command["kind"], ()) if name in body),
    ]
    whom = [
        *(f"module {name}" for name in target.get("modules", ())),
        *(f"agent {name}" for name in target.get("agent_ids", ())),
    ]
    return " ".join(dict.fromkeys(words)) + (
        f" for {', '.join(whom)}" if whom else " for all" if target.get("all") else ""
    )


def _dumped(answer: dict[str, Any]) -> str:
    return json.dumps(answer)
