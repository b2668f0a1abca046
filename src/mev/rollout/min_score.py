"""Warnings about a `min_score` that does not fit the model in production.

Agents of the reference strategy send nothing that scores below `min_score`; without a model, they
send nothing at all.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from mev.control.command_store import CommandRecord
from mev.control.control_state import ControlState
from mev.rollout import plan
from mev.rollout.model import Deployment
from mev.wire.orders import version_key as version_of

WITHOUT_MODEL, OF_ANOTHER_MODEL = "min_score_without_model", "min_score_of_another_model"
_SUBJECT = "config:min_score"
_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdWarning:
    """A threshold that keeps agents from trading, and the `command` that corrects it."""

    code: str
    detail: str
    agent_ids: list[str]
    command: str


def warnings(deployment: Deployment, control_state: ControlState) -> list[ThresholdWarning]:
    """Return the warnings about the thresholds ordered for the agents of a deployment's module."""
    blocked: dict[float, list[str]] = {}
    foreign: dict[float, list[str]] = {}
    members = sorted(
        agent.id
        for agent in control_state.fleet.agents.values()
        if agent.module == deployment.module
    )
    for agent_id in members:
        if (
            config := plan.newest(
                control_state.command_store, _SUBJECT, deployment.module, [agent_id]
            )
        ) is None or not (least := _value(config)):
            continue
        swap = plan.newest(
            control_state.command_store, plan.PRODUCTION_SUBJECT, deployment.module, [agent_id]
        )
        if swap is None or not swap.command.model.model_id:
            blocked.setdefault(least, []).append(agent_id)
        elif version_of(config.command.version) < version_of(swap.command.version):
            foreign.setdefault(least, []).append(agent_id)
    found = [_blocked(deployment, least, names, members) for least, names in blocked.items()]
    return [
        *found,
        *(_foreign(deployment, least, names, members) for least, names in foreign.items()),
    ]


def _blocked(
    deployment: Deployment, least: float, names: list[str], members: list[str]
) -> ThresholdWarning:
    detail = (
        f"min_score is {least:g} and no model decides at {_few(names)}: nothing is sent there. To"
        " trade without a model:"
    )
    return ThresholdWarning(
        code=WITHOUT_MODEL,
        detail=detail,
        agent_ids=names,
        command=_command(deployment, names, members),
    )


def _foreign(
    deployment: Deployment, least: float, names: list[str], members: list[str]
) -> ThresholdWarning:
    detail = (
        f"min_score {least:g} was set before the model that decides now at {_few(names)}. "
        "Set what the card of that model recommends, or take all:"
    )
    return ThresholdWarning(
        code=OF_ANOTHER_MODEL,
        detail=detail,
        agent_ids=names,
        command=_command(deployment, names, members),
    )


def _command(deployment: Deployment, names: list[str], members: list[str]) -> str:
    whom = (
        [f"--module {deployment.module}"]
        if names == members
        else [f"--agent {name}" for name in names]
    )
    return " ".join(["mev command config min_score 0", *whom])


def _value(config: CommandRecord) -> float:
    """Return the value of a configuration, or 0 where it is no number."""
    value = json.loads(config.command.config.config_value_json)
    return float(value) if isinstance(value, int | float) else 0.0


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return f"{', '.join(listed[:_NAMED])}{more}"
