"""Settings that can change while the control plane runs, on every replica, by signed commands.

Each replica is enrolled like an agent, in module ``control-plane``, and reports the settings it
applied or refused.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mev.bus.publisher import Publisher
from mev.control.command_store import CommandRecord
from mev.control.errors import InvalidCommandError
from mev.control.fleet import CONTROL_PLANE
from mev.core.clock import now_ns
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.settings import Settings
from mev.wire.orders import is_for, version_key
from mev.wire.pb.control_pb2 import ACK, ACTIVE, NACK, STATUS, Report, Running, Version
from mev.wire.registry import KafkaRecord
from mev.wire.topics import REPORT

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimeConfig:
    """The settings that can change at runtime, each with the function that applies it."""

    apply: Mapping[str, Callable[[Any], None]]

    def schemas(self) -> list[dict[str, Any]]:
        """Return key, description and JSON Schema of each setting."""
        fields = {key: Settings.model_fields[key] for key in self.apply}
        return [
            {
                "key": key,
                "description": field.description or "",
                "schema": TypeAdapter(field.rebuild_annotation()).json_schema(),
            }
            for key, field in fields.items()
        ]

    def parse(self, key: str, value: object) -> Any:
        """Return `value` converted to the setting's type and validated as at start.

        :raises InvalidCommandError: naming the problem.
        """
        if key not in self.apply:
            raise InvalidCommandError(
                f"config_key: {key!r} does not change live; these do: {', '.join(self.apply)}",
                field="config_key",
            )
        field = Settings.model_fields[key]
        try:
            return TypeAdapter(field.rebuild_annotation()).validate_python(value)
        except ValidationError as error:
            raise InvalidCommandError(
                f"config_value: {error.errors()[0]['msg']}", field="config_value"
            ) from None


class Replica:
    """This process as a member of the fleet: applies configuration commands, and reports."""

    def __init__(
        self, replica_id: str, key: SigningKey, hot: RuntimeConfig, publisher: Publisher
    ) -> None:
        self.id = replica_id
        self._key = key
        self._hot = hot
        self._publisher = publisher
        self._started_ns = now_ns()
        self._configs: dict[str, Version] = {}

    @property
    def public_key(self) -> bytes:
        """The public key of its reports."""
        return self._key.public_key

    async def obey(self, issued: CommandRecord) -> None:
        """Apply a configuration command for this replica, and report the result."""
        command = issued.command
        if command.WhichOneof("body") != "config" or not is_for(
            command.target, self.id, CONTROL_PLANE
        ):
            return
        received = now_ns()
        if (known := self._configs.get(command.config.config_key)) and version_key(
            known
        ) > version_key(command.version):
            detail = f"a newer order on {command.config.config_key} is in force"
            await self._send(
                Report(
                    command_id=command.id,
                    result=NACK,
                    reason_code="rolled_back",
                    detail=detail,
                    received_at_ns=received,
                )
            )
            return
        try:
            value = self._hot.parse(
                command.config.config_key, json.loads(command.config.config_value_json)
            )
            self._hot.apply[command.config.config_key](value)
        except InvalidCommandError as error:
            await self._send(
                Report(
                    command_id=command.id,
                    result=NACK,
                    reason_code=error.code,
                    detail=error.detail,
                    received_at_ns=received,
                )
            )
            return
        self._configs[command.config.config_key] = command.version
        LOG.info(
            "%s is now %s",
            command.config.config_key,
            command.config.config_value_json,
            extra={"action": "hot_config"},
        )
        await self._send(
            Report(
                command_id=command.id, result=ACK, received_at_ns=received, applied_at_ns=now_ns()
            )
        )

    async def report_status(self) -> None:
        """Report that this replica is alive, with its active settings."""
        await self._send(Report(result=STATUS))

    async def _send(self, report: Report) -> None:
        report.agent_id, report.module = self.id, CONTROL_PLANE
        report.agent_counter = report.reported_at_ns = now_ns()
        report.uptime_ns = report.reported_at_ns - self._started_ns
        running = Running(level=ACTIVE, ordered_level=ACTIVE)
        for key, version in self._configs.items():
            running.configs[key].CopyFrom(version)
        report.running.CopyFrom(running)
        record: KafkaRecord = {
            "key": self.id.encode(),
            "value": seal(report, self._key).SerializeToString(),
        }
        await self._publisher.publish(REPORT, [record])
