"""Settings: environment variable, type, default and description of each.

A service variable that is not set selects the embedded service; one that is set selects that
service. `load` is the only function that reads the environment, except for MEV_NATIVE, which
:mod:`mev.core.native` reads in processes that have no settings too. Each area's settings are a
class of their own; :class:`Settings` has them all.
"""

from collections.abc import Mapping
from typing import cast

from pydantic import SecretStr, ValidationError

from mev.core.confine import Confinement, strongest
from mev.core.errors import InvalidInputError
from mev.settings.access import AccountsVariables, BrowsersVariables, LimitsVariables
from mev.settings.control import AuditVariables, ControlVariables
from mev.settings.events import IngestVariables, SinkVariables
from mev.settings.learning import ExportsVariables, TrainingsVariables
from mev.settings.services import (
    LogsVariables,
    ObjectStoreVariables,
    PathsVariables,
    SecretsVariables,
    ServicesVariables,
    parse_kafka_options,
    split_keys,
)
from mev.settings.streams import StreamsVariables, WebTransportVariables

__all__ = [
    "MASKED",
    "InvalidSettingsError",
    "Settings",
    "load",
    "load_usable",
    "parse_kafka_options",
    "secrets_in",
    "shown",
    "split_keys",
]
MASKED = "********"


class InvalidSettingsError(InvalidInputError):
    """A setting has an invalid value."""

    code = "invalid_settings"


# pydantic lists the fields of the last base class first.
class Settings(
    LogsVariables,
    ExportsVariables,
    WebTransportVariables,
    StreamsVariables,
    SinkVariables,
    IngestVariables,
    LimitsVariables,
    BrowsersVariables,
    AccountsVariables,
    AuditVariables,
    ControlVariables,
    SecretsVariables,
    ObjectStoreVariables,
    ServicesVariables,
    TrainingsVariables,
    PathsVariables,
):
    """Settings of one process."""

    @property
    def effective_workers(self) -> int:
        """Return the number of API processes: one while any service is embedded."""
        return 1 if self.embedded else self.api_workers

    def confinement(self) -> Confinement:
        """Return the confinement of training processes. Blocks at the first call."""
        return strongest(
            self.train_uid, self.mev_data_dir, required=self.train_confinement == "required"
        )

    @property
    def effective_approvals_required(self) -> int:
        """Return the number of approvals required before agents may take more risk."""
        return self.approvals_required or (1 if self.embedded else 2)


def secrets_in(environment: Mapping[str, str]) -> list[str]:
    """Return the variables in `environment` that are secrets of this program."""
    secret = (
        name.upper()
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    )
    return sorted(name for name in secret if environment.get(name))


def load(**overrides: object) -> Settings:
    """Return the settings from the environment; `overrides` by field name take precedence.

    :raises InvalidSettingsError: naming every invalid variable.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = [
            f"{str(item['loc'][0]).upper()}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise InvalidSettingsError("; ".join(wrong), errors=wrong) from None


def load_usable() -> tuple[Settings, str]:
    """Return the settings with defaults instead of invalid values, and the errors.

    Used for a stop, which must be sent even when other settings are invalid.
    """
    try:
        return load(), ""
    except InvalidSettingsError as error:
        fields = Settings.model_fields
        wrong = [
            text.partition(":")[0].lower() for text in cast("list[str]", error.fields["errors"])
        ]
        return load(
            **{name: fields[name].get_default(call_default_factory=True) for name in wrong}
        ), error.detail


def shown(settings: Settings) -> list[tuple[str, str, str, str]]:
    """Return (variable, value, origin, description) of every setting, secrets masked."""
    return [
        (
            name.upper(),
            _show(getattr(settings, name)),
            "set" if name in settings.model_fields_set else "default",
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _show(value: object) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, SecretStr):
        return MASKED if value.get_secret_value() not in {"", "{}"} else ""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
