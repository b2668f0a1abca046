"""What an agent can be asked to do: checked before a command is accepted, done once it is on disk."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mev.agent.level import Level
from mev.agent.model import Loaded
from mev.agent.policy import check_policy
from mev.agent.refusal import BadParamsError, LevelForbidsError, UnknownActionError, UnsupportedConfigError, UnsupportedError
from mev.agent.seats import Seats
from mev.agent.strategy import Param, Strategy, Value
from mev.wire.pb.control_pb2 import Command, ModelRole, ModuleAction, SetConfig, SwapModel


@dataclass(frozen=True, slots=True)
class Setting:
    """A configuration key of the agent itself."""

    param: Param
    apply: Callable[[Value], None]


class Repertoire:
    """The strategy's actions, policies and configuration, the agent's own settings, and the places for models."""

    def __init__(self, strategy: Strategy, settings: Mapping[str, Setting], seats: Seats) -> None:
        self._strategy = strategy
        self._settings = settings
        self._seats = seats
        self._actions = {action.name: action for action in strategy.actions}
        self._params = {**strategy.configs, **{key: setting.param for key, setting in settings.items()}}

    def check(self, command: Command, level: Level) -> None:
        """Check that `command` can be done while `level` is in force.

        :raises RefusedError: when it cannot.
        """
        match command.WhichOneof("body"):
            case "level":
                pass
            case "policy":
                check_policy(command.policy, self._strategy.policy_types)
            case "config":
                self._value(command.config)
            case "action":
                self._check_action(command.action, level)
            case "model":
                _check_model(command.model)
            case _:
                raise UnsupportedError("the command has no body that this version knows")

    def perform(self, command: Command, loaded: Loaded | None = None) -> str:
        """Do what `command` asks for beyond what the state says; return a line for the answer. `loaded` is the model it asks for."""
        match command.WhichOneof("body"):
            case "config" if command.config.hot_reload:
                self.configure(command.config)
            case "config":
                return "used from the next start on"
            case "action":
                action = self._actions[command.action.action]
                return self._strategy.on_action(action.name, action.parse(command.action.params_json))
            case "model":
                return self._seats.put(command.model, loaded)
        return ""

    def configure(self, config: SetConfig) -> None:
        """Use a configuration value."""
        value = self._value(config)
        if (setting := self._settings.get(config.config_key)) is not None:
            setting.apply(value)
        else:
            self._strategy.on_config(config.config_key, value)

    def _check_action(self, action: ModuleAction, level: Level) -> None:
        known = self._actions.get(action.action)
        if known is None:
            raise UnknownActionError(f"{action.action!r}; there are {', '.join(self._actions) or 'none'}")
        known.parse(action.params_json)
        if level < known.needs:
            raise LevelForbidsError(f"{action.action} needs level {known.needs.name}; {level.name} is in force")

    def _value(self, config: SetConfig) -> Value:
        param = self._params.get(config.config_key)
        if param is None:
            raise UnsupportedConfigError(f"{config.config_key!r}; there are {', '.join(sorted(self._params))}")
        try:
            value = json.loads(config.config_value_json)
        except (ValueError, RecursionError):
            raise BadParamsError(f"{config.config_key}: the value is not JSON") from None
        return param.check(config.config_key, value)


def _check_model(swap: SwapModel) -> None:
    if swap.role not in ModelRole.values():
        raise UnsupportedError(f"role {swap.role} of models; this version knows {', '.join(ModelRole.keys())}")
    # Written so that NaN is refused as well.
    if not 0 <= swap.share <= 1:
        raise BadParamsError(f"share: {swap.share} is not between 0 and 1")
