"""Risk assessment of commands: one that may raise risk needs `APPROVALS_REQUIRED` people.

Revoked agents count like enrolled ones: nothing prevents them from obeying.

A new value is compared with every value that the target's agents may hold: for each agent the
newest one, and the one before while the newest is not yet in effect. Of settings it is the newest
one that the agent did not refuse, and every newer one: a signed refusal must not loosen a limit.
Each agent declares the
direction in which a value limits more; where an agent that would apply the command declares
nothing, the change counts as raising risk.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mev.control.command_store import CommandStore
from mev.control.control_state import ControlState
from mev.control.declared import Declarations, declarations, policy_problem
from mev.control.fleet import CONTROL_PLANE, EnrolledAgent
from mev.wire.orders import scopes, subject, version_key
from mev.wire.pb.control_pb2 import (
    SHADOW,
    TIGHTER_HIGHER,
    TIGHTER_LOWER,
    TIGHTER_NEITHER,
    Command,
    DeclaredLimit,
    Enrolment,
    PolicyRule,
    SetConfig,
    SetPolicy,
    Target,
)

_UNDECLARED = DeclaredLimit()


@dataclass(frozen=True, slots=True)
class _Holder:
    """An agent, or future agents of a scope, with the commands it may have, newest last."""

    name: str
    declared: Declarations
    before: tuple[Command, ...]
    refused_all: bool = False
    """The agent refused all these settings, so that it may hold its initial value."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for holders with the same comparison."""
        return id(self.declared), self.refused_all, *(command.id for command in self.before)


def reasons(draft: Command, control_state: ControlState, now_ns: int) -> list[str]:
    """Return why a policy, a setting or a model swap may raise risk; empty if it does not."""
    match draft.WhichOneof("body"):
        case "policy":
            found = _of_policy(draft, control_state, now_ns)
        case "config" if not _is_for_control_plane(draft.target, control_state):
            found = [
                why
                for holder in _holders(draft, control_state)
                for why in _config_reasons(draft.config, holder)
            ]
        case "model" if draft.model.role != SHADOW:
            found = ["another model decides"]
        case _:
            found = []
    return list(dict.fromkeys(found))


def _is_for_control_plane(target: Target, control_state: ControlState) -> bool:
    meant = control_state.fleet.meant(target)
    return bool(meant) and all(agent.module == CONTROL_PLANE for agent in meant)


def _holders(draft: Command, control_state: ControlState) -> Iterable[_Holder]:
    """Return the holders that `draft` applies to; equal ones are merged."""
    about, meant = subject(draft), control_state.fleet.meant(draft.target)
    declared = {agent.declared for agent in meant} or {declarations(Enrolment())}
    command_store = control_state.command_store
    found = []
    for scope in scopes(draft.target):  # nothing else is known about agents enrolled later
        held = _held(about, ["all", scope], command_store)
        found += [_Holder(scope, each, *held) for each in declared]
    for agent in meant:
        held = _held(about, _scopes_of(agent), command_store, agent.id)
        found.append(_Holder(agent.id, agent.declared, *held))
    for gone in control_state.fleet.let_go(draft.target):
        # Earlier versions did not store the declarations of revoked agents.
        if gone.policy_types or gone.policies or gone.configs:
            names = ["all", f"module:{gone.module}", f"agent:{gone.agent_id}"]
            held = _held(about, names, command_store, gone.agent_id)
            name = f"{gone.agent_id}, which was let go,"
            found.append(_Holder(name, declarations(gone), *held))
    merged: dict[tuple[object, ...], _Holder] = {}
    for holder in found:
        merged.setdefault(holder.key, holder)
    return merged.values()


def _held(
    about: str, names: Sequence[str], command_store: CommandStore, agent_id: str = ""
) -> tuple[tuple[Command, ...], bool]:
    """Return the commands that an agent of these scopes may have, and whether it refused all."""
    names = list(dict.fromkeys(names))
    if about.startswith("config:"):
        settings, refused_all = command_store.held_settings(about, names, agent_id)
        return tuple(issued.command for issued in settings), refused_all
    chains = [chain for name in names if (chain := command_store.chain(about, name))]
    newest = max(chains, key=lambda chain: version_key(chain[-1].command.version), default=[])
    return tuple(issued.command for issued in newest), False


def _scopes_of(agent: EnrolledAgent) -> list[str]:
    return ["all", f"module:{agent.module}", f"agent:{agent.id}"]


def _of_policy(draft: Command, control_state: ControlState, now_ns: int) -> list[str]:
    found: list[str] = []
    for holder in _holders(draft, control_state):
        # A policy that the agent refuses changes nothing.
        if policy_problem(draft.policy, holder.declared) is None:
            found += _policy_reasons(draft.policy, holder, now_ns)
    if draft.policy.enabled:
        found += _freed(draft, control_state, now_ns)
    return found


def _policy_reasons(policy: SetPolicy, holder: _Holder, now_ns: int) -> Iterator[str]:
    limits = holder.declared.policies[policy.policy_type]
    for before in holder.before:
        yield from _loosened(before.policy, policy, limits, now_ns)
    if policy.enabled:
        for name in sorted(policy.thresholds):
            if not _is_directed(limits[name]) and _adds(policy, name, holder.before):
                yield (
                    f"thresholds.{name}: {holder.name} does not declare "
                    "in which direction it limits more"
                )


def _adds(policy: SetPolicy, name: str, before: Sequence[Command]) -> bool:
    """Return whether a threshold is new, or was in a disabled policy."""
    held = [each.policy for each in before]
    return not held or any(
        not each.enabled or each.thresholds.get(name) != policy.thresholds[name] for each in held
    )


def _loosened(
    before: SetPolicy, after: SetPolicy, limits: Mapping[str, DeclaredLimit], now_ns: int
) -> Iterator[str]:
    if not before.enabled:
        return
    if not after.enabled:
        yield "the policy is disabled"
        return
    if after.policy_type != before.policy_type:
        yield f"policy_type changes from {before.policy_type!r} to {after.policy_type!r}"
    for name, old in sorted(before.thresholds.items()):
        if name not in after.thresholds:
            yield f"thresholds.{name} is removed"
        elif not _is_as_tight(limits.get(name, _UNDECLARED), old, new := after.thresholds[name]):
            yield f"thresholds.{name} changes from {old:g} to {new:g}"
    kept = {_rule(rule) for rule in after.rules}
    for rule in before.rules:
        if _rule(rule) not in kept:
            yield f"the rule {_rule(rule)!r} is removed"
    if now_ns < before.effective_from_ns < after.effective_from_ns:
        yield "the policy begins later"


def _freed(draft: Command, control_state: ControlState, now_ns: int) -> Iterator[str]:
    """Yield why an agent that lacks a policy of this type would start to open positions."""
    wanted = draft.policy.policy_type
    waiting = [
        agent
        for agent in control_state.fleet.meant(draft.target)
        if wanted in agent.declared.required
    ]
    in_force = (
        [issued.command for issued in control_state.command_store.in_force(now_ns)]
        if waiting
        else []
    )
    subjects = {subject(command) for command in in_force if command.WhichOneof("body") == "policy"}
    for agent in waiting:
        held = [
            _held(about, _scopes_of(agent), control_state.command_store)[0] for about in subjects
        ]
        has_one = any(_limits_now(chain[-1].policy, wanted, now_ns) for chain in held if chain)
        if not has_one or wanted in agent.running.missing_policies:
            yield (
                f"{agent.id} requires a policy of type {wanted!r} and has none: "
                "it would open positions"
            )
            return


def _limits_now(policy: SetPolicy, policy_type: str, now_ns: int) -> bool:
    return (
        policy.enabled and policy.policy_type == policy_type and policy.effective_from_ns <= now_ns
    )


def _config_reasons(config: SetConfig, holder: _Holder) -> Iterator[str]:
    key = config.config_key
    limit = holder.declared.configs.get(key)
    if limit is None and holder.declared.configs:
        return  # the agent declares its keys, and refuses all others
    if limit is None or not _is_directed(limit):
        yield f"{key}: {holder.name} does not declare in which direction it limits more"
        return
    if limit.tighter == TIGHTER_NEITHER:
        return
    before: list[float | None] = [
        _number(command.config.config_value_json) for command in holder.before
    ]
    if holder.refused_all:
        before.append(limit.initial if limit.HasField("initial") else None)
    new = _number(config.config_value_json)
    for old in before:
        if new is None or old is None or not _is_as_tight(limit, old, new):
            yield (
                f"{key} changes from {'an unknown value' if old is None else f'{old:g}'} "
                f"to {config.config_value_json[:100]}"
            )


def _is_directed(limit: DeclaredLimit) -> bool:
    return limit.tighter in {TIGHTER_HIGHER, TIGHTER_LOWER, TIGHTER_NEITHER}


def _is_as_tight(limit: DeclaredLimit, old: float, new: float) -> bool:
    if limit.tighter == TIGHTER_HIGHER:
        return new >= old
    if limit.tighter == TIGHTER_LOWER:
        return new <= old
    return limit.tighter == TIGHTER_NEITHER or new == old


def _number(text: str) -> float | None:
    value = json.loads(text)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _rule(rule: PolicyRule) -> str:
    return f"{rule.field} {rule.operator} {rule.value}"
