"""Interface for bot authors: strategy, actions and decisions.

Hooks are called in the agent's event loop and must return quickly. Order: `on_start`, then the
active state (`on_policies`, `on_config`, `on_level`), then other hooks as events arrive. Operators
can use what a strategy declares.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from google.protobuf.message import Message

from mev.agent.level import Level
from mev.agent.policy import Policies, PolicyType
from mev.agent.refusal import BadParamsError
from mev.core.clock import Clock
from mev.wire.orders import Tighter
from mev.wire.pb.events_pb2 import Bundle, Opportunity

Value = str | int | float | bool
_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A parameter of an action, or a configuration value."""

    type: Literal["integer", "number", "string", "boolean"]
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Value, ...] = ()
    required: bool = True
    tighter: Tighter | None = None
    """Direction in which a configuration value reduces risk; None: any change raises risk."""
    initial: float | None = None
    """Initial value of a configuration value, before any command."""

    def schema(self) -> dict[str, object]:
        """Return the parameter as JSON Schema."""
        notes = {
            "description": self.description,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "enum": list(self.choices),
        }
        return {
            "type": self.type,
            **{name: note for name, note in notes.items() if note not in (None, "", [])},
        }

    def check(self, name: str, value: object) -> Value:
        """Return `value` if it is valid.

        :raises BadParamsError: when it is not.
        """
        if type(value) not in _TYPES[self.type]:
            raise BadParamsError(f"{name}: expected {self.type}, got {json.dumps(value)[:80]}")
        assert isinstance(value, str | int | float)  # noqa: S101 - narrows for the type checker
        if self.choices and value not in self.choices:
            raise BadParamsError(
                f"{name}: {value!r} is none of {', '.join(map(repr, self.choices))}"
            )
        # This form of the comparison also rejects NaN.
        if not isinstance(value, str) and not (
            _least(self.minimum) <= value <= _most(self.maximum)
        ):
            raise BadParamsError(
                f"{name}: {value!r} is not between {self.minimum} and {self.maximum}"
            )
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An action for operators; `needs` is the lowest level that allows it (HALTED: always).

    An action that `raises_risk` may need more approvals.
    """

    name: str
    description: str
    params: Mapping[str, Param] = field(default_factory=dict)
    needs: Level = Level.HALTED
    raises_risk: bool = True

    def declaration(self) -> dict[str, object]:
        """Return the declaration for the control plane."""
        schema = {
            "type": "object",
            "properties": {name: param.schema() for name, param in self.params.items()},
            "required": [name for name, param in self.params.items() if param.required],
            "additionalProperties": False,
        }
        return {
            "name": self.name,
            "description": self.description,
            "params": schema,
            "raises_risk": self.raises_risk,
        }

    def parse(self, params_json: str) -> dict[str, Value]:
        """Return the parameters in `params_json`.

        :raises BadParamsError: naming the first invalid parameter.
        """
        try:
            given = json.loads(params_json or "{}")
        except (ValueError, RecursionError):
            raise BadParamsError("the parameters are not JSON") from None
        if not isinstance(given, dict):
            raise BadParamsError("the parameters are no JSON object")
        if unknown := sorted(given.keys() - self.params.keys()):
            raise BadParamsError(f"{unknown[0]}: {self.name} has no such parameter")
        if missing := [
            name for name, param in self.params.items() if param.required and name not in given
        ]:
            raise BadParamsError(f"{missing[0]}: missing")
        return {name: self.params[name].check(name, value) for name, value in given.items()}


AGENT_CONFIGS: Mapping[str, Param] = {
    "report_interval_s": Param(
        type="number",
        description="Pause between signs of life, seconds.",
        minimum=0.1,
        maximum=60,
        tighter="neither",
    )
}
"""Configuration values of every agent."""


class Exposure(Enum):
    """Effect of a decision on positions, with the lowest level that allows it."""

    OPENS = Level.ACTIVE
    REDUCES = Level.REDUCING
    CANCELS = Level.HALTED


@dataclass(frozen=True, slots=True)
class Decision:
    """An event to publish and its effect on positions; published only if the level allows it."""

    exposure: Exposure
    event: Message

    @classmethod
    def opens(cls, bundle: Bundle) -> "Decision":
        """Return a decision to open a position."""
        return cls(Exposure.OPENS, bundle)


@dataclass(frozen=True, slots=True)
class StrategyContext:
    """Context that an agent gives its strategy."""

    agent_id: str
    clock: Clock
    level: Callable[[], Level]


class Strategy:
    """Base class of strategies: override what is needed; `module` is the kind of bot."""

    module: str
    actions: Sequence[Action] = ()
    policy_types: Sequence[PolicyType] = ()
    configs: Mapping[str, Param] = {}

    def on_start(self, context: StrategyContext) -> None:
        """Store the context; called first, once."""

    def on_opportunity(self, opportunity: Opportunity, score: float | None) -> Iterable[Decision]:
        """Return the decisions for `opportunity`.

        `score` is the production model's score, or None.
        """
        return ()

    def on_action(self, name: str, params: Mapping[str, Value]) -> str:
        """Execute an action with validated parameters; return a line for the answer."""
        return ""

    def on_policies(self, policies: Policies) -> None:
        """Use `policies` from now on."""

    def on_config(self, key: str, value: Value) -> None:
        """Use a configuration value from now on."""

    def blocked_by(self, *, has_model: bool) -> Sequence[str]:
        """Return stable names of the reasons why nothing is sent at any level.

        `has_model` is whether a production model is active.
        """
        return ()

    def on_level(self, level: Level, reason: str) -> None:
        """Receive the effective level, and why it is below the ordered one."""


def _least(bound: float | None) -> float:
    return float("-inf") if bound is None else bound


def _most(bound: float | None) -> float:
    return float("inf") if bound is None else bound
