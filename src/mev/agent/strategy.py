"""What a bot's author writes: a strategy, its actions, its decisions.

Every hook is called in the agent's event loop and must return soon. The agent calls them in this order: `on_start`, then whatever is
in force (`on_policies`, `on_config`, `on_level`), then the rest as it comes. What a strategy declares is what operators can ask for.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from google.protobuf.message import Message

from mev.agent.clock import Clock
from mev.agent.level import Level
from mev.agent.policy import Policies, PolicyType
from mev.agent.refusal import BadParamsError
from mev.wire.pb.events_pb2 import Bundle, Opportunity

Value = str | int | float | bool
_TYPES: dict[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "string": (str,), "boolean": (bool,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """One parameter of an action, or one configuration value."""

    type: Literal["integer", "number", "string", "boolean"]
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Value, ...] = ()
    required: bool = True

    def schema(self) -> dict[str, object]:
        """Return it as JSON Schema."""
        notes = {"description": self.description, "minimum": self.minimum, "maximum": self.maximum, "enum": list(self.choices)}
        return {"type": self.type, **{name: note for name, note in notes.items() if note not in (None, "", [])}}

    def check(self, name: str, value: object) -> Value:
        """Return `value` when it fits.

        :raises BadParamsError: when it does not.
        """
        if type(value) not in _TYPES[self.type]:
            raise BadParamsError(f"{name}: expected {self.type}, got {json.dumps(value)[:80]}")
        assert isinstance(value, str | int | float)  # noqa: S101 - narrows for the type checker
        if self.choices and value not in self.choices:
            raise BadParamsError(f"{name}: {value!r} is none of {', '.join(map(repr, self.choices))}")
        # Written so that NaN is refused as well.
        if not isinstance(value, str) and not (_least(self.minimum) <= value <= _most(self.maximum)):
            raise BadParamsError(f"{name}: {value!r} is not between {self.minimum} and {self.maximum}")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something an operator can ask for. `needs` is the lowest level at which it is allowed: HALTED means always."""

    name: str
    description: str
    params: Mapping[str, Param] = field(default_factory=dict)
    needs: Level = Level.HALTED

    def declaration(self) -> dict[str, object]:
        """Return it as the control plane is told of it."""
        schema = {
            "type": "object",
            "properties": {name: param.schema() for name, param in self.params.items()},
            "required": [name for name, param in self.params.items() if param.required],
            "additionalProperties": False,
        }
        return {"name": self.name, "description": self.description, "params": schema}

    def parse(self, params_json: str) -> dict[str, Value]:
        """Return the parameters in `params_json`.

        :raises BadParamsError: naming the first that does not fit.
        """
        try:
            given = json.loads(params_json or "{}")
        except (ValueError, RecursionError):
            raise BadParamsError("the parameters are not JSON") from None
        if not isinstance(given, dict):
            raise BadParamsError("the parameters are no JSON object")
        if unknown := sorted(given.keys() - self.params.keys()):
            raise BadParamsError(f"{unknown[0]}: {self.name} has no such parameter")
        if missing := [name for name, param in self.params.items() if param.required and name not in given]:
            raise BadParamsError(f"{missing[0]}: missing")
        return {name: self.params[name].check(name, value) for name, value in given.items()}


class Exposure(Enum):
    """What a decision does to positions, and the lowest level at which it may."""

    OPENS = Level.ACTIVE
    REDUCES = Level.REDUCING
    CANCELS = Level.HALTED


@dataclass(frozen=True, slots=True)
class Decision:
    """An event to publish, and what it does to positions. The agent publishes it only while the level allows that."""

    exposure: Exposure
    event: Message

    @classmethod
    def opens(cls, bundle: Bundle) -> "Decision":
        """Return a decision to take a position."""
        return cls(Exposure.OPENS, bundle)


@dataclass(frozen=True, slots=True)
class Desk:
    """What an agent gives its strategy."""

    agent_id: str
    clock: Clock
    level: Callable[[], Level]


class Strategy:
    """A bot's own part. Subclass it and overwrite what is needed; `module` is the kind of bot that operators see."""

    module: str
    actions: Sequence[Action] = ()
    policy_types: Sequence[PolicyType] = ()
    configs: Mapping[str, Param] = {}

    def on_start(self, desk: Desk) -> None:
        """Take the desk; called once, before everything else."""

    def on_opportunity(self, opportunity: Opportunity, score: float | None) -> Iterable[Decision]:
        """Return what to do about `opportunity`. `score` is what the model that decides says of it; None when there is none to say it."""
        return ()

    def on_action(self, name: str, params: Mapping[str, Value]) -> str:
        """Do what an operator asks for; return a line for the answer. Parameters were checked against the declaration."""
        return ""

    def on_policies(self, policies: Policies) -> None:
        """Use `policies` from now on."""

    def on_config(self, key: str, value: Value) -> None:
        """Use a configuration value from now on."""

    def on_level(self, level: Level, reason: str) -> None:
        """Note the level in force, and why it is below the ordered one when it is."""


def _least(bound: float | None) -> float:
    return float("-inf") if bound is None else bound


def _most(bound: float | None) -> float:
    return float("inf") if bound is None else bound
