"""Handlers of commands: check a command before it is accepted, execute it once it is stored."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mev.agent.active_models import ActiveModels
from mev.agent.level import Level
from mev.agent.model_source import Loaded
from mev.agent.policy import check_policy
from mev.agent.refusal import (
    BadParamsError,
    LevelForbidsError,
    UnknownActionError,
    UnsupportedCommandError,
    UnsupportedConfigError,
)
from mev.agent.strategy import Param, Strategy, Value
from mev.wire.pb.control_pb2 import Command, ModelRole, ModuleAction, SetConfig, SwapModel


@dataclass(frozen=True, slots=True)
class Setting:
    """A configuration key of the agent itself."""

    param: Param
    apply: Callable[[Value], None]


class CommandHandlers:
    """Handlers for actions, policies, configuration, the agent's settings and models."""

    def __init__(
        self, strategy: Strategy, settings: Mapping[str, Setting], active_models: ActiveModels
    ) -> None:
        self._strategy = strategy
        self._settings = settings
        self._active_models = active_models
        self._actions = {action.name: action for action in strategy.actions}
        self._params = {
            **strategy.configs,
            **{key: setting.param for key, setting in settings.items()},
        }

    def check(self, command: Command, level: Level) -> None:
        """Check that `command` can be executed while `level` is active.

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
                raise UnsupportedCommandError("the command has no body that this version knows")

    def missing_policies(self, in_force: Mapping[str, Command]) -> list[str]:
        """Return the required policy types without an enabled active policy."""
        held = {
            command.policy.policy_type for command in in_force.values() if command.policy.enabled
        }
        return [
            each.name
            for each in self._strategy.policy_types
            if each.required and each.name not in held
        ]

    def perform(self, command: Command, loaded: Loaded | None = None) -> str:
        """Execute the effect of `command`; return a line for the answer.

        `loaded` is the model that the command names.
        """
        match command.WhichOneof("body"):
            case "config" if command.config.hot_reload:
                self.configure(command.config)
            case "config":
                return "used from the next start on"
            case "action":
                action = self._actions[command.action.action]
                return self._strategy.on_action(
                    action.name, action.parse(command.action.params_json)
                )
            case "model":
                return self._active_models.put(command.model, loaded)
        return ""

    def configure(self, config: SetConfig) -> None:
        """Apply a configuration value."""
        value = self._value(config)
        if (setting := self._settings.get(config.config_key)) is not None:
            setting.apply(value)
        else:
            self._strategy.on_config(config.config_key, value)

    def _check_action(self, action: ModuleAction, level: Level) -> None:
        known = self._actions.get(action.action)
        if known is None:
            raise UnknownActionError(
                f"{action.action!r}; there are {', '.join(self._actions) or 'none'}"
            )
        known.parse(action.params_json)
        if level < known.needs:
            raise LevelForbidsError(
                f"{action.action} needs level {known.needs.name}; {level.name} is in force"
            )

    def _value(self, config: SetConfig) -> Value:
        param = self._params.get(config.config_key)
        if param is None:
            raise UnsupportedConfigError(
                f"{config.config_key!r}; there are {', '.join(sorted(self._params))}"
            )
        try:
            value = json.loads(config.config_value_json)
        except (ValueError, RecursionError):
            raise BadParamsError(f"{config.config_key}: the value is not JSON") from None
        return param.check(config.config_key, value)


def _check_model(swap: SwapModel) -> None:
    if swap.role not in ModelRole.values():
        raise UnsupportedCommandError(
            f"role {swap.role} of models; this version knows {', '.join(ModelRole.keys())}"
        )
    # This form of the comparison also rejects NaN.
    if not 0 <= swap.share <= 1:
        raise BadParamsError(f"share: {swap.share} is not between 0 and 1")
