"""Interface of the audit trail, and the content of control's records."""

from collections.abc import Mapping
from typing import Protocol

import orjson
from google.protobuf.json_format import MessageToDict

from mev.control.control_state import ControlState
from mev.control.policies import changes
from mev.core.asgi import SENDER
from mev.wire.orders import subject
from mev.wire.pb.control_pb2 import Command

SYSTEM = "system"  # actor of actions without a request


class AuditWriter(Protocol):
    """The audit trail.

    `record` returns once the record is stored, or raises; `record_later` does neither.
    """

    async def record(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002 - the field's name
        outcome: str = "ok",
        details: Mapping[str, object] | None = None,
        *,
        correlation_id: str = "",
    ) -> int:
        """Store a record."""

    def record_later(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002 - the field's name
        outcome: str = "ok",
        details: Mapping[str, object] | None = None,
        *,
        correlation_id: str = "",
    ) -> None:
        """Store a record as soon as possible."""


def actor_of(person: str) -> str:
    """Return the actor for a record: the sender of the request, else the issuer of the command."""
    sender = SENDER.get()
    if sender is not None:
        return sender.actor
    return person if person in {SYSTEM, "master"} else f"user:{person}"


def details_of(command: Command, state: ControlState) -> dict[str, object]:
    """Return a command's content, approvers and signing key for its audit record.

    A policy's record has the changes to the policy that `state` has.

    JSON values are parsed, so that fields with names of secrets are hidden.
    """
    body = command.WhichOneof("body")
    ordered: dict[str, object] = (
        MessageToDict(getattr(command, body), preserving_proto_field_name=True) if body else {}
    )
    match body:
        case "config":
            del ordered["config_value_json"]
            ordered["config"] = {
                command.config.config_key: orjson.loads(command.config.config_value_json)
            }
        case "action":
            ordered.pop("params_json", None)
            ordered["params"] = orjson.loads(command.action.params_json or "{}")
    found: dict[str, object] = {
        "key_id": state.keys.signing.key_id,
        "issuer": command.issuer.principal,
        **ordered,
    }
    if command.issuer.approvers:
        found["approvers"] = list(command.issuer.approvers)
    if body == "policy":
        before = next(iter(state.command_store.latest_of(subject(command))), None)
        found["diff"] = changes(before.command.policy if before else None, command.policy)
    return found
