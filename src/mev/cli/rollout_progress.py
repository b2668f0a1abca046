"""Progress of a deployment on a terminal, until it waits for no agent and no rule."""

import time
from typing import Any

from rich.console import Console
from rich.text import Text

from mev.cli.api import poll
from mev.core.text import shown
from mev.rollout.model import Stage

ENDED_BADLY = frozenset({"rolled_back", "superseded", "failed"})
_PATH = "/api/training"
_OPEN = frozenset({"NOT_SENT", "STALE"})
_COUNTED = frozenset({"agents", "min_scored", "hold_s", "ack_timeout_s"})
_ACK_TIMEOUT_S = 60.0
_POLL_S = 0.3
_SAY_AGAIN_S = 10.0


class _Told:
    """Progress messages on stderr.

    The last line of a terminal shows the pending rules; a pipe gets a line when they change.
    """

    def __init__(self) -> None:
        self._console = Console(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self.line = self._console.status("")
        self._said: dict[str, str] = {}
        self._missing: frozenset[str] = frozenset()
        self._due = 0.0

    def say(self, what: str, news: str) -> None:
        if self._said.get(what) != news:
            self._said[what] = news
            self._console.print(shown(f"{what}: {news}"))

    def answers(self, step: dict[str, Any], commands: list[dict[str, Any]]) -> None:
        for command in commands:
            for item in command["deliveries"] or ():
                away = "" if item["alive"] else ", away"
                why = (
                    f", {item['reason_code']}: {item['detail'] or ''}"
                    if item["reason_code"]
                    else ""
                )
                role = f" {command['role']}" if len(commands) > 1 else ""
                self.say(f"{step['stage']}{role} {item['agent_id']}", f"{item['state']}{away}{why}")

    def waits(self, missing: dict[str, str]) -> None:
        """Report the pending rules; `missing` maps each name to its remainder."""
        text = ", ".join(f"{name} {rest}".strip() for name, rest in missing.items())
        self.line.update(Text(shown(f"missing: {text}")))
        if self._console.is_terminal or not missing:
            return
        if frozenset(missing) != self._missing or time.monotonic() >= self._due:
            self._missing, self._due = frozenset(missing), time.monotonic() + _SAY_AGAIN_S
            self.say("missing", text)


def follow(answer: dict[str, Any]) -> dict[str, Any]:
    """Report answers and pending rules until the deployment has ended; return the deployment.

    A rollback is followed until the live agents have answered, or for `ack_timeout_s`.
    """
    told = _Told()
    with told.line:
        while True:
            told.say("deployment", f"{answer['stage']}: {answer['state']}")
            if answer["state"] in ENDED_BADLY:
                return _taken_back(answer, told)
            step = answer["steps"][-1]
            told.answers(step, step["commands"][:1])  # the first command deploys the model
            if answer["state"] == "done" or (answer["state"] == "ready" and not answer["promote"]):
                return answer
            told.waits(_missing(answer))
            answer = _later(answer)


def unanswered(answer: dict[str, Any]) -> list[str]:
    """Return the live agents that have not yet unloaded the model of a rolled-back deployment."""
    step = answer["steps"][-1]
    if step["stage"] != Stage.ROLLBACK:
        return []
    found = [
        item
        for command in step["commands"]
        for item in command["deliveries"] or ()
        if item["alive"] and item["state"] != "SYNCED"
    ]
    return list(dict.fromkeys(item["agent_id"] for item in found))


def _taken_back(answer: dict[str, Any], told: _Told) -> dict[str, Any]:
    deadline = time.monotonic() + _bound(answer)
    while True:
        step = answer["steps"][-1]
        told.answers(step, step["commands"])
        open_ = {agent: "" for agent in unanswered(answer) if _is_open(step, agent)}
        if not open_ or time.monotonic() >= deadline:
            return answer
        told.waits({"the answer of": ", ".join(open_)})
        answer = _later(answer)


def _is_open(step: dict[str, Any], agent: str) -> bool:
    items = (item for command in step["commands"] for item in command["deliveries"] or ())
    return any(
        item["agent_id"] == agent and item["alive"] and item["state"] in _OPEN for item in items
    )


def _later(answer: dict[str, Any]) -> dict[str, Any]:
    time.sleep(_POLL_S)
    later: dict[str, Any] = poll(f"{_PATH}/deployments/{answer['id']}").json()
    return later


def _bound(answer: dict[str, Any]) -> float:
    bounds = (
        row["bound"] for row in answer["rules"] if row["rule"] == "ack_timeout_s" and row["bound"]
    )
    return float(next(bounds, _ACK_TIMEOUT_S))


def _missing(answer: dict[str, Any]) -> dict[str, str]:
    """Return the pending rules, with the progress of those that count."""
    waiting = [row for row in answer["rules"] if row["verdict"] == "waiting"]
    return {
        row["rule"]: f"{row['value'] or 0:.6g} of {row['bound']:.6g}"
        if row["rule"] in _COUNTED
        else ""
        for row in waiting
    }
