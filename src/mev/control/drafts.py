"""From requests to unsigned commands, checked against the fleet they are for."""

import hashlib
import json
import re

from pydantic import BaseModel

from mev.control import validate
from mev.control.errors import InvalidCommandError
from mev.control.fleet import CONTROL_PLANE, Fleet
from mev.control.hot import HotSettings
from mev.control.model import CommandIn, ConfigIn, KillSwitchIn, ModelSwapIn, PolicyIn, TargetIn
from mev.core.clock import now_ns
from mev.wire.pb.control_pb2 import Command, ModuleAction, PolicyRule, SetConfig, SetLevel, SetPolicy, SwapModel, Target

_NS = 1_000_000_000
_MODEL_FILE = re.compile(r"(?:.*/)?([0-9a-f]{64})\.(?:mevt|so)")


def target(given: TargetIn, fleet: Fleet) -> Target:
    """Return who is meant; nobody named means everybody."""
    wanted = Target(all=given.all or not (given.modules or given.agent_ids), modules=given.modules, agent_ids=given.agent_ids)
    validate.check_target(wanted, fleet)
    return wanted


def action(request: CommandIn, fleet: Fleet) -> Command:
    """Return the draft of an action."""
    body = ModuleAction(module=request.module, action=request.action, params_json=json.dumps(request.params))
    validate.check_action(body, fleet)
    wanted = target(request.target or TargetIn(modules=[request.module]), fleet)
    draft = Command(action=body, target=wanted, priority=request.priority)
    if request.expires_in_s is not None:
        draft.expires_at_ns = now_ns() + round(request.expires_in_s * _NS)
    return draft


def policy(request: PolicyIn, fleet: Fleet) -> Command:
    """Return the draft of a policy."""
    body = SetPolicy(
        policy_id=request.policy_id,
        policy_type=request.policy_type,
        thresholds=request.thresholds,
        rules=[PolicyRule(field=rule.field, operator=rule.operator, value=_text(rule.value)) for rule in request.rules],
        enabled=request.enabled,
        effective_from_ns=round(request.effective_from.timestamp() * _NS) if request.effective_from else 0,
    )
    validate.check_policy(body, fleet)
    return Command(policy=body, target=target(request.target, fleet), priority=5)


def model_swap(request: ModelSwapIn, fleet: Fleet) -> Command:
    """Return the draft of a model swap."""
    body = SwapModel(model_id=request.model_id, model_path=request.model_path, version=request.version)
    named = _MODEL_FILE.fullmatch(request.model_path)  # such a name says the digest already
    body.sha256 = bytes.fromhex(request.sha256 or (named[1] if named else ""))
    validate.check_model_path(body)
    return Command(model=body, target=target(request.target, fleet), priority=5)


def level(request: KillSwitchIn, fleet: Fleet) -> Command:
    """Return the draft of a level."""
    if (request.scope == "all") == bool(request.target):
        raise InvalidCommandError("target: name the module or agent when scope is not all, and only then", field="target")
    wanted = Target(all=request.scope == "all")
    if request.target:
        (wanted.modules if request.scope == "module" else wanted.agent_ids).append(request.target)
    validate.check_target(wanted, fleet)
    until_ns = now_ns() + round(request.duration * _NS) if request.duration else 0
    return Command(level=SetLevel(level=request.level, reason=request.reason, until_ns=until_ns), target=wanted, priority=9)


def config(request: ConfigIn, fleet: Fleet, hot: HotSettings) -> Command:
    """Return the draft of a configuration change."""
    if not request.hot_reload:
        raise InvalidCommandError("hot_reload: settings that need a restart are environment variables; set them there", field="hot_reload")
    if request.target is None:
        hot.parse(request.config_key, request.config_value)
    body = SetConfig(config_key=request.config_key, config_value_json=json.dumps(request.config_value), hot_reload=True)
    return Command(config=body, target=target(request.target or TargetIn(modules=[CONTROL_PLANE]), fleet), priority=5)


def request_hash(path: str, request: BaseModel) -> bytes:
    """Return a digest of what is asked for."""
    return hashlib.sha256(f"{path}\n{request.model_dump_json()}".encode()).digest()


def _text(value: str | float | bool) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
