"""What the control endpoints take and answer."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mev.core.text import check_printable

_DEEPEST = 32


def _check_depth(value: object) -> object:
    """Refuse what is nested so deeply that looking at it could exhaust the stack."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner for outer in level if isinstance(outer, dict | list) for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError(f"nested too deeply: {_DEEPEST} levels are allowed")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Json = Annotated[dict[str, Any], AfterValidator(_check_depth)]
Printable = Annotated[str, AfterValidator(check_printable)]


class Strict(BaseModel):
    """A request: an unknown field is refused."""

    model_config = ConfigDict(extra="forbid")


class TargetIn(Strict):
    """Who is meant; without any field everybody is."""

    all: bool = False
    modules: list[Name] = []
    agent_ids: list[Name] = []


class CommandIn(Strict):
    """An action of a module."""

    module: Name
    action: Name
    params: Json = {}
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    target: TargetIn | None = Field(None, description="Agents of the module; all of them when not given.")
    expires_in_s: Annotated[float, Field(gt=0, le=86_400)] | None = None


class RuleIn(Strict):
    """One comparison over a field of an opportunity."""

    field: Printable
    operator: Literal["==", "!=", "<", "<=", ">", ">="]
    value: str | float | bool


class PolicyIn(Strict):
    """A policy: thresholds by name, and rules that must all hold."""

    policy_id: Name
    policy_type: Name
    thresholds: dict[Name, float] = {}
    rules: Annotated[list[RuleIn], Field(max_length=64)] = []
    enabled: bool = True
    effective_from: datetime | None = None
    target: TargetIn = TargetIn(all=True)


class ModelSwapIn(Strict):
    """A model to load."""

    model_id: Name
    model_path: Annotated[str, Field(max_length=512)]
    version: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    target: TargetIn = TargetIn(all=True)


class KillSwitchIn(Strict):
    """A level for all, for a module or for one agent."""

    scope: Literal["all", "module", "agent"] = "all"
    target: Name | None = Field(None, description="The module or agent, when scope is not all.")
    level: Literal["HALTED", "REDUCING", "NO_NEW", "ACTIVE"] = "HALTED"
    reason: Annotated[str, Field(min_length=1, max_length=500)]
    duration: Annotated[float, Field(gt=0, le=2_592_000)] | None = Field(
        None, description="Seconds after which the level before returns; for lowering only."
    )


class ConfigIn(Strict):
    """A setting of the running control plane, or of agents when there is a target."""

    config_key: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.]{0,127}$")]
    config_value: Annotated[Any, AfterValidator(_check_depth)]
    hot_reload: bool = True
    target: TargetIn | None = Field(None, description="Agents; the control plane's own replicas when not given.")


class ActionIn(Strict):
    """An action that an agent can do."""

    name: Name
    description: Annotated[Printable, Field(max_length=500)] = ""
    params: Json = {}


class EnrolIn(Strict):
    """An agent that wants in."""

    agent_id: Name
    module: Name
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    software_version: Annotated[Printable, Field(max_length=64)] = ""
    actions: Annotated[list[ActionIn], Field(max_length=128)] = []
    policy_types: Annotated[list[Name], Field(max_length=64)] = []


class VoteIn(Strict):
    """What a person says to a proposal."""

    approve: bool


class KeySetIn(Strict):
    """A newer key set, signed by root keys, in base64."""

    key_set: str
