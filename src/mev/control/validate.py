"""Validation of commands against their targets before they are signed."""

import json
import math
import re
from collections.abc import Iterable

from google.protobuf.descriptor import FieldDescriptor

from mev.control import action_schemas
from mev.control.errors import InvalidCommandError, SchemaNotAllowedError
from mev.control.fleet import CONTROL_PLANE, Fleet
from mev.control.requests import EnrolIn
from mev.wire.orders import INTEGERS
from mev.wire.pb.control_pb2 import PolicyRule, SetPolicy, SwapModel, Target
from mev.wire.registry import EVENT_TYPES

_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*")
# The schemas of one agent together may have this many times the size of the largest one.
MAX_COMMAND_BYTES = 256 << 10
SCHEMAS_PER_AGENT = 4
_LISTED = 20
OPERATORS = ("==", "!=", "<", "<=", ">", ">=")


def check_target(target: Target, fleet: Fleet, *, or_let_go: bool = False) -> None:
    """Refuse a target with an unknown module or agent: a typing error must not look like success.

    With `or_let_go`, the names of revoked agents are accepted too: those agents may still obey.
    """
    modules = {agent.module for agent in fleet.agents.values()}
    for name in target.modules:
        if name not in modules and not (or_let_go and fleet.let_go(Target(modules=[name]))):
            raise InvalidCommandError(
                f"target.modules: no agent of module {name!r}; there are {list_names(modules)}",
                field="target.modules",
            )
    for name in target.agent_ids:
        if name not in fleet.agents and not (or_let_go and name in fleet.revoked):
            raise InvalidCommandError(
                f"target.agent_ids: no agent {name!r}; there are {list_names(fleet.agents)}",
                field="target.agent_ids",
            )


def check_enrolment(body: EnrolIn, *, max_schema_bytes: int) -> None:
    """Check the name of the module and the schemas of the actions.

    :raises InvalidCommandError: naming the first problem; `SchemaNotAllowedError` for a schema.
    """
    if body.module == CONTROL_PLANE:
        raise InvalidCommandError(
            f"module: {CONTROL_PLANE!r} is the control plane's own", field="module"
        )
    names = [action.name for action in body.actions]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InvalidCommandError(f"actions: {repeated[0]!r} is declared twice", field="actions")
    size_bytes = 0
    for index, action in enumerate(body.actions):
        place = f"actions[{index}].params"
        action_schemas.check_schema(action.params, place, max_bytes=max_schema_bytes)
        size_bytes += len(json.dumps(action.params))
    if size_bytes > SCHEMAS_PER_AGENT * max_schema_bytes:
        allowed = SCHEMAS_PER_AGENT * max_schema_bytes
        raise SchemaNotAllowedError(
            f"actions: the schemas have {size_bytes} bytes together; {allowed} are allowed",
            field="actions",
        )


def check_rules(policy: SetPolicy) -> None:
    """Refuse rules on unknown fields, or with a value that does not fit the field."""
    for index, rule in enumerate(policy.rules):
        _check_rule(rule, f"rules[{index}]")


def check_model_path(model: SwapModel) -> None:
    """Refuse a path that could leave the model folder."""
    path = model.model_path
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise InvalidCommandError(
            f"model_path: {path!r} is not a path below MODEL_DIR", field="model_path"
        )


def _check_rule(rule: PolicyRule, place: str) -> None:
    fields = EVENT_TYPES["opportunity"].descriptor.fields_by_name
    field = fields.get(rule.field)
    if field is None or field.message_type or field.is_repeated:
        raise InvalidCommandError(
            f"{place}.field: an opportunity has no plain field {rule.field!r}",
            field=f"{place}.field",
        )
    if rule.operator not in OPERATORS:
        raise InvalidCommandError(
            f"{place}.operator: {rule.operator!r} is none of {' '.join(OPERATORS)}",
            field=f"{place}.operator",
        )
    if field.type in {
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BOOL,
    } and rule.operator not in {"==", "!="}:
        raise InvalidCommandError(
            f"{place}.operator: only == and != compare {rule.field}", field=f"{place}.operator"
        )
    if not _fits(rule.value, field):
        raise InvalidCommandError(
            f"{place}.value: {rule.value!r} is not a value of {rule.field}", field=f"{place}.value"
        )


def _fits(value: str, field: FieldDescriptor) -> bool:
    if field.type == FieldDescriptor.TYPE_STRING:
        return True
    if field.type == FieldDescriptor.TYPE_BOOL:
        return value in {"true", "false"}
    try:
        return math.isfinite(int(value) if field.type in INTEGERS else float(value))
    except (ValueError, OverflowError):
        return False


def list_names(known: Iterable[str]) -> str:
    """Return names for an error message: sorted, the first 20."""
    names = sorted(known)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "none yet") + more


def check_size(size_bytes: int) -> None:
    """Check that a command or proposal of `size_bytes` can be published.

    :raises InvalidCommandError: if it is too large.
    """
    if size_bytes > MAX_COMMAND_BYTES:
        raise InvalidCommandError(
            f"the command has {size_bytes} bytes; {MAX_COMMAND_BYTES} are allowed"
        )
