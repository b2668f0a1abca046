"""Agents' declarations of policies and settings: types, thresholds, keys and directions.

The direction tells which values limit the agent more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from mev.control.errors import InvalidCommandError
from mev.wire.orders import threshold_directions
from mev.wire.pb.control_pb2 import DeclaredLimit, Enrolment, SetPolicy

_LISTED = 100
_DEFAULT = {name: DeclaredLimit(name=name) for name in threshold_directions()}


@dataclass(frozen=True, slots=True, eq=False)
class Declarations:
    """The declarations of one enrolment; equal ones share one object."""

    policies: Mapping[str, Mapping[str, DeclaredLimit]]
    """Allowed thresholds by policy type."""
    required: frozenset[str]
    """Policy types without which the agent opens no position."""
    configs: Mapping[str, DeclaredLimit]


class Declaring(Protocol):
    """An agent with its declarations."""

    @property
    def id(self) -> str: ...

    @property
    def declared(self) -> Declarations: ...


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """Reason why an agent cannot apply a policy, according to its declarations."""

    reason_code: str
    field: str
    detail: str


def declarations(enrolment: Enrolment) -> Declarations:
    """Return the declarations of an enrolment.

    A policy type without declared thresholds has those on opportunities.
    """
    kept = Enrolment(
        policy_types=enrolment.policy_types, policies=enrolment.policies, configs=enrolment.configs
    )
    return _parsed(kept.SerializeToString(deterministic=True))


def check_policy(policy: SetPolicy, meant: Sequence[Declaring]) -> list[dict[str, str]]:
    """Check a policy against the declarations of its target agents.

    Return the agents that cannot apply it, the first 100.

    :raises InvalidCommandError: if no agent can apply it; without agents, if none of our own could.
    """
    if not meant:
        if unknown := [name for name in policy.thresholds if name not in _DEFAULT]:
            raise InvalidCommandError(
                f"thresholds.{unknown[0]}: an opportunity has no such number",
                field=f"thresholds.{unknown[0]}",
            )
        return []
    found = {each: policy_problem(policy, each) for each in {agent.declared for agent in meant}}
    problems = [
        (agent.id, problem) for agent in meant if (problem := found[agent.declared]) is not None
    ]
    if len(problems) == len(meant):
        # An error about thresholds, from agents that know the type, is the most specific one.
        first = min((problem for _, problem in problems), key=lambda problem: problem.reason_code)
        raise InvalidCommandError(first.detail, field=first.field)
    return [
        {"agent_id": name, "reason_code": one.reason_code, "field": one.field, "detail": one.detail}
        for name, one in problems[:_LISTED]
    ]


def check_config(config_key: str, meant: Sequence[Declaring]) -> list[str]:
    """Check a setting against the declarations of its target agents.

    Return the agents that do not have it, the first 100. An agent without declared settings may
    have any.

    :raises InvalidCommandError: if no agent has it.
    """
    lacking = [
        agent.id
        for agent in meant
        if agent.declared.configs and config_key not in agent.declared.configs
    ]
    if lacking and len(lacking) == len(meant):
        known = _names({name for agent in meant for name in agent.declared.configs})
        raise InvalidCommandError(
            f"config_key: no agent of the target declares {config_key!r}; declared are {known}",
            field="config_key",
        )
    return lacking[:_LISTED]


def policy_problem(policy: SetPolicy, declared: Declarations) -> PolicyProblem | None:
    """Return why an agent cannot apply a policy, None if it can."""
    thresholds = declared.policies.get(policy.policy_type)
    if thresholds is None:
        known = _names(declared.policies)
        return PolicyProblem(
            "unknown_policy_type",
            "policy_type",
            f"policy_type: {policy.policy_type!r} is not declared; declared are {known}",
        )
    for name in policy.thresholds:
        if name not in thresholds:
            detail = (
                f"thresholds.{name}: policy type {policy.policy_type!r} does not declare it; "
                f"it declares {_names(thresholds)}"
            )
            return PolicyProblem("bad_policy", f"thresholds.{name}", detail)
    return None


@lru_cache(maxsize=4096)
def _parsed(content: bytes) -> Declarations:
    kept = Enrolment.FromString(content)
    policies: dict[str, Mapping[str, DeclaredLimit]] = dict.fromkeys(kept.policy_types, _DEFAULT)
    for each in kept.policies:
        policies[each.name] = {limit.name: limit for limit in each.thresholds}
    required = frozenset(each.name for each in kept.policies if each.required)
    return Declarations(policies, required, {limit.name: limit for limit in kept.configs})


def _names(known: Iterable[str]) -> str:
    names = sorted(known)
    return (", ".join(names[:_LISTED]) or "none") + (" and more" if len(names) > _LISTED else "")
