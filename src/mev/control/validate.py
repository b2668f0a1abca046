"""Whether a command can mean anything to those it is for, before it is signed."""

import json
import re
from collections.abc import Iterable, Mapping

import jsonschema
from google.protobuf.descriptor import FieldDescriptor
from jsonschema import Draft202012Validator
from referencing import Registry

from mev.control.errors import InvalidCommandError
from mev.control.fleet import CONTROL_PLANE, Fleet
from mev.control.model import EnrolIn
from mev.wire.pb.control_pb2 import ModuleAction, PolicyRule, SetPolicy, SwapModel, Target
from mev.wire.registry import EVENT_TYPES

_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*")
# An agent's schema is read while everybody waits: nothing in it may fetch, or take long.
_REFUSED_KEYWORDS = {"$ref", "$dynamicRef", "pattern", "patternProperties"}
_LONGEST_SCHEMA = 16_384
OPERATORS = ("==", "!=", "<", "<=", ">", ">=")


def check_target(target: Target, fleet: Fleet) -> None:
    """Refuse a target that means nobody by name: a typing error must not look like success."""
    modules = {agent.module for agent in fleet.agents.values()}
    for name in target.modules:
        if name not in modules:
            raise InvalidCommandError(f"target.modules: no agent of module {name!r}; there are {_names(modules)}", field="target.modules")
    for name in target.agent_ids:
        if name not in fleet.agents:
            raise InvalidCommandError(f"target.agent_ids: no agent {name!r}; there are {_names(fleet.agents)}", field="target.agent_ids")


def check_action(action: ModuleAction, fleet: Fleet) -> None:
    """Refuse an action that no agent of the module declared, or parameters that do not fit its declaration."""
    declared = {each.name: each for agent in fleet.agents.values() if agent.module == action.module for each in agent.enrolment.actions}
    if not any(agent.module == action.module for agent in fleet.agents.values()):
        modules = {agent.module for agent in fleet.agents.values()}
        raise InvalidCommandError(f"module: no agent of module {action.module!r}; there are {_names(modules)}", field="module")
    if action.action not in declared:
        raise InvalidCommandError(
            f"action: module {action.module!r} has no action {action.action!r}; there are {_names(declared)}", field="action"
        )
    _check_params(json.loads(action.params_json or "{}"), declared[action.action].params_schema_json)


def check_enrolment(body: EnrolIn) -> None:
    """Refuse a module of ours, and action schemas that are none or that could fetch or stall."""
    if body.module == CONTROL_PLANE:
        raise InvalidCommandError(f"module: {CONTROL_PLANE!r} is the control plane's own", field="module")
    for index, action in enumerate(body.actions):
        place = f"actions[{index}].params"
        text = json.dumps(action.params)
        if len(text) > _LONGEST_SCHEMA or any(f'"{keyword}"' in text for keyword in _REFUSED_KEYWORDS):
            raise InvalidCommandError(
                f"{place}: a schema has at most {_LONGEST_SCHEMA} bytes and none of {', '.join(sorted(_REFUSED_KEYWORDS))}", field=place
            )
        try:
            Draft202012Validator.check_schema(action.params)
        except jsonschema.SchemaError as error:
            raise InvalidCommandError(f"{place}: {error.message}", field=place) from None


def check_policy(policy: SetPolicy, fleet: Fleet) -> None:
    """Refuse a policy type nobody declared and rules over fields that do not exist."""
    types = {name for agent in fleet.agents.values() for name in agent.enrolment.policy_types}
    if types and policy.policy_type not in types:
        raise InvalidCommandError(f"policy_type: nobody knows {policy.policy_type!r}; there are {_names(types)}", field="policy_type")
    for index, rule in enumerate(policy.rules):
        _check_rule(rule, f"rules[{index}]")


def check_model_path(model: SwapModel) -> None:
    """Refuse a path that could lead out of the model folder."""
    path = model.model_path
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise InvalidCommandError(f"model_path: {path!r} is not a path below MODEL_DIR", field="model_path")


def _check_params(params: Mapping[str, object], schema_json: str) -> None:
    try:
        Draft202012Validator(json.loads(schema_json or "{}"), registry=Registry()).validate(params)
    except jsonschema.ValidationError as error:
        place = "params" + "".join(f"[{part!r}]" for part in error.absolute_path)
        raise InvalidCommandError(f"{place}: {error.message}", field=place) from None


def _check_rule(rule: PolicyRule, place: str) -> None:
    fields = EVENT_TYPES["opportunity"].descriptor.fields_by_name
    field = fields.get(rule.field)
    if field is None or field.message_type or field.is_repeated:
        raise InvalidCommandError(f"{place}.field: an opportunity has no plain field {rule.field!r}", field=f"{place}.field")
    if rule.operator not in OPERATORS:
        raise InvalidCommandError(f"{place}.operator: {rule.operator!r} is none of {' '.join(OPERATORS)}", field=f"{place}.operator")
    if field.type not in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BOOL}:
        try:
            float(rule.value)
        except ValueError:
            raise InvalidCommandError(f"{place}.value: {rule.value!r} is not a number", field=f"{place}.value") from None


def _names(known: Iterable[str]) -> str:
    return ", ".join(sorted(known)) or "none yet"
