"""Request bodies of the control endpoints."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from mev.core.body import Body, Items
from mev.core.clock import check_time
from mev.core.text import check_printable

_DEEPEST = 32


def _check_depth(value: object) -> object:
    """Refuse a value nested so deeply that processing it could exhaust the stack."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError(f"nested too deeply: {_DEEPEST} levels are allowed")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Json = Annotated[dict[str, Any], AfterValidator(_check_depth)]
Printable = Annotated[str, AfterValidator(check_printable)]


class TargetIn(Body):
    """Target of a command; without any field it is all agents."""

    all: bool = False
    modules: Items[Name] = Field(default=[])
    agent_ids: Items[Name] = Field(default=[])


class CommandIn(Body):
    """An action of a module."""

    module: Name
    action: Name
    params: Json = Field(default={})
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    target: TargetIn | None = Field(
        None, description="Agents of the module; all of them when not given."
    )
    expires_in_s: Annotated[float, Field(gt=0, le=86_400)] | None = None


class RuleIn(Body):
    """One comparison over a field of an opportunity."""

    field: Printable
    operator: Literal["==", "!=", "<", "<=", ">", ">="]
    value: str | int | float | bool


class PolicyIn(Body):
    """A policy: thresholds by name, and rules that must all hold."""

    policy_id: Name
    policy_type: Name
    thresholds: Annotated[
        dict[Name, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=256)
    ] = Field(default={})
    rules: Annotated[Items[RuleIn], Field(max_length=64)] = Field(default=[])
    enabled: bool = True
    effective_from: Annotated[datetime, AfterValidator(check_time)] | None = None
    target: TargetIn = TargetIn(all=True)


class ModelSwapIn(Body):
    """A model to load."""

    model_id: Name
    model_path: Annotated[str, Field(max_length=512)]
    version: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    target: TargetIn = TargetIn(all=True)


class KillSwitchIn(Body):
    """A level for all, for a module or for one agent."""

    scope: Literal["all", "module", "agent"] = "all"
    target: Name | None = Field(None, description="The module or agent, when scope is not all.")
    level: Literal["HALTED", "REDUCING", "NO_NEW", "ACTIVE"] = "HALTED"
    reason: Annotated[str, Field(min_length=1, max_length=500)]
    duration: Annotated[float, Field(gt=0, le=2_592_000)] | None = Field(
        None, description="Seconds after which the level before returns; for lowering only."
    )
    lower_only: bool = Field(
        False, description="Refuse the request with code raises_level where the level would raise."
    )


class ConfigIn(Body):
    """A setting of the running control plane, or of agents when there is a target."""

    config_key: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.]{0,127}$")]
    config_value: Annotated[Any, AfterValidator(_check_depth)]
    hot_reload: bool = True
    target: TargetIn | None = Field(
        None, description="Agents; the control plane's own replicas when not given."
    )


class ActionIn(Body):
    """An action that an agent can do."""

    name: Name
    description: Annotated[Printable, Field(max_length=500)] = ""
    params: Json = Field(default={})
    raises_risk: bool = Field(True, description="Whether more people may have to approve it.")


Direction = Literal["higher", "lower", "neither"]


class LimitIn(Body):
    """A threshold or a configuration value that an agent takes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    tighter: Direction | None = Field(
        None,
        description="In which direction it limits more; when not given, every change raises risk.",
    )
    initial: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="The value before any order."
    )


class PolicyTypeIn(Body):
    """A type of policy that an agent takes."""

    type: Name
    thresholds: Annotated[Items[LimitIn], Field(max_length=256)] = Field(default=[])
    required: bool = Field(
        False,
        description="Whether the agent opens no position without an enabled policy of this type.",
    )


class EnrolIn(Body):
    """An agent that wants in."""

    agent_id: Name
    module: Name
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    software_version: Annotated[Printable, Field(max_length=64)] = ""
    actions: Annotated[Items[ActionIn], Field(max_length=128)] = Field(default=[])
    policy_types: Annotated[Items[Name], Field(max_length=64)] = Field(default=[])
    policies: Annotated[Items[PolicyTypeIn], Field(max_length=64)] = Field(default=[])
    configs: Annotated[Items[LimitIn], Field(max_length=256)] = Field(default=[])


class VoteIn(Body):
    """Vote of a person on a proposal."""

    approve: bool


class KeySetIn(Body):
    """A newer key set, signed by root keys, in base64."""

    key_set: str
