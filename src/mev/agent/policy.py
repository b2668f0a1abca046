"""Policies for opportunities: rules and thresholds, validated and compiled once."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mev.agent.refusal import BadPolicyError, UnknownPolicyTypeError
from mev.wire.orders import ALIASES, FLOATS, INTEGERS
from mev.wire.pb.control_pb2 import PolicyRule, SetPolicy
from mev.wire.pb.events_pb2 import Opportunity

Check = Callable[[Opportunity], bool]
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_BOUNDS = {"min_": ">=", "max_": "<="}
_BOOLS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class PolicyType:
    """A policy type of a strategy.

    A `required` type must have an enabled policy to open positions.
    """

    name: str
    description: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class _Limit:
    policy_id: str
    text: str
    check: Check


class Policies:
    """The active policies; an opportunity must satisfy all enabled ones."""

    def __init__(self, policies: Iterable[SetPolicy] = ()) -> None:
        self._limits = [limit for policy in policies if policy.enabled for limit in _limits(policy)]

    def refusal(self, opportunity: Opportunity) -> str | None:
        """Return the policy and limit that refuse `opportunity`, or None."""
        for limit in self._limits:
            if not limit.check(opportunity):
                return f"{limit.policy_id}: {limit.text}"
        return None


def check_policy(policy: SetPolicy, known: Iterable[PolicyType]) -> None:
    """Check that `policy` can be applied.

    :raises UnknownPolicyTypeError: when its type is not in `known`.
    :raises BadPolicyError: naming the invalid rule or threshold.
    """
    names = [one.name for one in known]
    if policy.policy_type not in names:
        raise UnknownPolicyTypeError(
            f"policy type {policy.policy_type!r}; there are {', '.join(names) or 'none'}"
        )
    if not policy.policy_id:
        raise BadPolicyError("the policy has no id")
    for _ in _limits(policy):
        pass


def _limits(policy: SetPolicy) -> Iterator[_Limit]:
    for name, value in sorted(policy.thresholds.items()):
        yield _Limit(policy.policy_id, f"{name} {value:g}", _threshold(name, value))
    for rule in policy.rules:
        yield _Limit(policy.policy_id, f"{rule.field} {rule.operator} {rule.value}", _rule(rule))


def _threshold(name: str, value: float) -> Check:
    compare = _BOUNDS.get(name[:4])
    if compare is None:
        raise BadPolicyError(f"threshold {name}: expected min_<field> or max_<field>")
    if math.isnan(value):
        raise BadPolicyError(f"threshold {name}: not a number")
    field = _field(ALIASES.get(name[4:], name[4:]))
    if field[-1].type not in INTEGERS | FLOATS:
        raise BadPolicyError(f"threshold {name}: {field[-1].name} is no number")
    return _check(field, _OPERATORS[compare], value)


def _rule(rule: PolicyRule) -> Check:
    compare = _OPERATORS.get(rule.operator)
    if compare is None:
        raise BadPolicyError(f"operator {rule.operator!r}; there are {' '.join(_OPERATORS)}")
    field = _field(rule.field)
    if field[-1].type in {
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BOOL,
    } and rule.operator not in {"==", "!="}:
        raise BadPolicyError(f"{rule.field} {rule.operator}: only == and != compare it")
    return _check(field, compare, _value(rule, field[-1]))


def _field(path: str) -> list[FieldDescriptor]:
    """Return the fields of `path`: a field of the opportunity, or of the steps of its route."""
    descriptor: Descriptor | None = cast("Descriptor", Opportunity.DESCRIPTOR)
    found = []
    for name in path.split("."):
        field = descriptor.fields_by_name.get(name) if descriptor is not None else None
        if field is None:
            raise BadPolicyError(f"an opportunity has no field {path!r}")
        found.append(field)
        descriptor = field.message_type
    if descriptor is not None or (len(found) == 1 and found[0].is_repeated):
        raise BadPolicyError(f"{path} is no single value")
    return found


def _value(rule: PolicyRule, field: FieldDescriptor) -> object:
    try:
        if field.type in INTEGERS:
            return int(rule.value)
        if field.type in FLOATS:
            return _number(rule.value)
        return _BOOLS[rule.value] if field.type == FieldDescriptor.TYPE_BOOL else rule.value
    except (ValueError, KeyError):
        raise BadPolicyError(
            f"{rule.field} {rule.operator} {rule.value!r}: not a value of that field"
        ) from None


def _number(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError(text)
    return value


def _check(
    path: list[FieldDescriptor], compare: Callable[[Any, Any], bool], value: object
) -> Check:
    if len(path) == 1:
        return partial(_single, path[0].name, compare, value)
    return partial(_every_step, path[0].name, path[1].name, compare, value)


def _single(
    name: str, compare: Callable[[Any, Any], bool], value: object, opportunity: Opportunity
) -> bool:
    return compare(getattr(opportunity, name), value)


def _every_step(
    steps: str,
    name: str,
    compare: Callable[[Any, Any], bool],
    value: object,
    opportunity: Opportunity,
) -> bool:
    return all(compare(getattr(step, name), value) for step in getattr(opportunity, steps))
