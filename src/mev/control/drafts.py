"""Conversion of requests into unsigned commands, checked against the fleet."""

import hashlib
import json
import re
from typing import Annotated

from fastapi import Header, Request
from pydantic import BaseModel

from mev.auth.model import MASTER, Principal
from mev.control import action_schemas, validate
from mev.control.errors import InvalidCommandError
from mev.control.fleet import CONTROL_PLANE, Fleet
from mev.control.requests import CommandIn, ConfigIn, KillSwitchIn, ModelSwapIn, PolicyIn, TargetIn
from mev.control.runtime_config import RuntimeConfig
from mev.core.clock import now_ns, to_ns
from mev.wire.pb.control_pb2 import (
    Command,
    ModuleAction,
    PolicyRule,
    SetConfig,
    SetLevel,
    SetPolicy,
    SwapModel,
    Target,
)

IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", max_length=128)]
_NS = 1_000_000_000
_MODEL_FILE = re.compile(r"(?:.*/)?([0-9a-f]{64})\.(?:mevt|so)")


def target(given: TargetIn, fleet: Fleet) -> Target:
    """Return the target of a request; all agents if it names none."""
    wanted = Target(
        all=given.all or not (given.modules or given.agent_ids),
        modules=given.modules,
        agent_ids=given.agent_ids,
    )
    validate.check_target(wanted, fleet)
    return wanted


def action(request: CommandIn, fleet: Fleet, *, max_params_bytes: int) -> Command:
    """Return the draft of an action; agents' declarations are not checked."""
    if request.module not in fleet.modules():
        known = validate.list_names(fleet.modules())
        raise InvalidCommandError(
            f"module: no agent of module {request.module!r}; there are {known}", field="module"
        )
    body = ModuleAction(
        module=request.module, action=request.action, params_json=json.dumps(request.params)
    )
    action_schemas.check_params_size(body.params_json, request.params, max_bytes=max_params_bytes)
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
        rules=[
            PolicyRule(field=rule.field, operator=rule.operator, value=_text(rule.value))
            for rule in request.rules
        ],
        enabled=request.enabled,
        effective_from_ns=to_ns(request.effective_from) if request.effective_from else 0,
    )
    validate.check_rules(body)
    return Command(policy=body, target=target(request.target, fleet), priority=5)


def model_swap(request: ModelSwapIn, fleet: Fleet) -> Command:
    """Return the draft of a model swap."""
    body = SwapModel(
        model_id=request.model_id, model_path=request.model_path, version=request.version
    )
    named = _MODEL_FILE.fullmatch(request.model_path)  # the file name is the digest
    body.sha256 = bytes.fromhex(request.sha256 or (named[1] if named else ""))
    validate.check_model_path(body)
    return Command(model=body, target=target(request.target, fleet), priority=5)


def level(request: KillSwitchIn, fleet: Fleet) -> Command:
    """Return the draft of a level command."""
    if (request.scope == "all") == bool(request.target):
        raise InvalidCommandError(
            "target: name the module or agent when scope is not all, and only then", field="target"
        )
    wanted = Target(all=request.scope == "all")
    if request.target:
        (wanted.modules if request.scope == "module" else wanted.agent_ids).append(request.target)
    member = fleet.agents.get(request.target or "")
    if request.target == CONTROL_PLANE or (member and member.module == CONTROL_PLANE):
        raise InvalidCommandError(
            f"target: {request.target!r} is the control plane; levels are for agents",
            field="target",
        )
    # Revoking an agent must not prevent that it is stopped.
    validate.check_target(wanted, fleet, or_let_go=True)
    until_ns = now_ns() + round(request.duration * _NS) if request.duration else 0
    return Command(
        level=SetLevel(level=request.level, reason=request.reason, until_ns=until_ns),
        target=wanted,
        priority=9,
    )


def config(request: ConfigIn, fleet: Fleet, hot: RuntimeConfig) -> Command:
    """Return the draft of a configuration change."""
    if not request.hot_reload:
        raise InvalidCommandError(
            "hot_reload: settings that need a restart are environment variables; set them there",
            field="hot_reload",
        )
    wanted = target(request.target or TargetIn(modules=[CONTROL_PLANE]), fleet)
    if all(member.module == CONTROL_PLANE for member in fleet.meant(wanted)):
        hot.parse(request.config_key, request.config_value)
    body = SetConfig(
        config_key=request.config_key,
        config_value_json=json.dumps(request.config_value),
        hot_reload=True,
    )
    return Command(config=body, target=wanted, priority=5)


def request_hash(path: str, request: BaseModel) -> bytes:
    """Return a digest of the request."""
    return hashlib.sha256(f"{path}\n{request.model_dump_json()}".encode()).digest()


def _text(value: str | int | float | bool) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def person(who: Principal) -> str:
    """Return the person behind a principal; all users of the master key are one person."""
    return who.user or MASTER.id


def signed_by(
    who: Principal, draft: Command, request: Request, body: BaseModel, idempotency_key: str
) -> Command:
    """Return `draft` with its issuer and what makes a repeated request known.

    :raises InvalidCommandError: if the key is reserved.
    """
    # The key of a deployment's next command could prevent it from being issued.
    if idempotency_key.startswith("deployment:"):
        raise InvalidCommandError(
            "Idempotency-Key: deployment:... is for the orders of deployments",
            field="Idempotency-Key",
        )
    draft.issuer.principal = person(who)
    draft.idempotency_key = idempotency_key
    draft.request_sha256 = request_hash(request.url.path, body)
    return draft
