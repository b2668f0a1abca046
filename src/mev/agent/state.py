"""Stored state of an agent: newest version of each object, active commands, answers.

The state is an immutable value: a change creates a new one, which is stored before it takes effect.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import DecodeError

from mev.agent.level import Latch, Lease, Level, ScopeLevels, Temporary
from mev.core.errors import MevError
from mev.wire.orders import version_key
from mev.wire.pb.control_pb2 import Command, SwapModel

_FORMAT = 1


class StateCorruptedError(MevError):
    """The stored state cannot be read."""

    code = "agent_state_corrupted"


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Result of a command; without `reason_code` it was applied."""

    reason_code: str = ""
    detail: str = ""
    received_at_ns: int = 0
    applied_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The newest command for one object; without an answer it may not have been applied."""

    command: Command
    received_at_ns: int
    answer: CommandResult | None = None
    reported: bool = False

    @property
    def version(self) -> tuple[int, int]:
        """Version of the command, comparable."""
        return version_key(self.command.version)

    @property
    def in_force(self) -> bool:
        """Return whether the command is active: not refused after acceptance."""
        return self.answer is None or not self.answer.reason_code

    @property
    def swap(self) -> SwapModel | None:
        """The model swap in the command, or None."""
        return self.command.model if self.command.WhichOneof("body") == "model" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """State that survives a restart; `key_set` is its envelope."""

    key_set: bytes
    accepted: Mapping[str, Accepted] = field(default_factory=dict)
    orders: Mapping[str, ScopeLevels] = field(default_factory=dict)
    policies_before: Mapping[str, Command] = field(default_factory=dict)
    lease: Lease = field(default_factory=Lease)
    latched: Latch | None = None
    snapshot: tuple[int, int] = (0, 0)

    def accept(self, objects: Mapping[str, Accepted]) -> "AgentState":
        """Return the state with newer commands for `objects`."""
        return replace(self, accepted={**self.accepted, **objects})

    def answered(self, command_id: str, answer: CommandResult) -> "AgentState":
        """Return the state with the result of a command."""
        known = {
            name: replace(one, answer=answer)
            for name, one in self.accepted.items()
            if one.command.id == command_id
        }
        return self.accept(known)

    def reported(self, command_ids: set[str]) -> "AgentState":
        """Return the state with these answers marked as acknowledged."""
        return self.accept(
            {
                name: replace(one, reported=True)
                for name, one in self.accepted.items()
                if one.command.id in command_ids
            }
        )

    def policies(self, now_ns: int) -> dict[str, Command]:
        """Return the active policies by id.

        The previous version stays active until a new one starts.
        """
        found = {}
        for one in self.accepted.values():
            if one.command.WhichOneof("body") != "policy":
                continue
            policy = one.command.policy
            if policy.effective_from_ns <= now_ns:
                found[policy.policy_id] = one.command
            elif (before := self.policies_before.get(policy.policy_id)) is not None:
                found[policy.policy_id] = before
        return found


def to_json(state: AgentState) -> bytes:
    """Return `state` in its stored format."""
    document = {
        "format": _FORMAT,
        "key_set": _text(state.key_set),
        "accepted": {name: _accepted_json(one) for name, one in state.accepted.items()},
        "orders": {scope: _order_json(one) for scope, one in state.orders.items()},
        "policies_before": {
            name: _text(one.SerializeToString()) for name, one in state.policies_before.items()
        },
        "lease": {"version": state.lease.version, "expires_at_ns": state.lease.expires_at_ns},
        "latched": state.latched
        and {"level": state.latched.level.name, "since_ns": state.latched.since_ns},
        "snapshot": state.snapshot,
    }
    return json.dumps(document, indent=1).encode()


def from_json(content: bytes) -> AgentState:
    """Return the state stored as `content`.

    :raises StateCorruptedError: when it is invalid. The agent must not start with an empty state:
        it would accept old commands again.
    """
    try:
        document = json.loads(content)
        if document["format"] != _FORMAT:
            raise StateCorruptedError(
                f"state of format {document['format']}; this version reads {_FORMAT}"
            )
        latched = document["latched"]
        return AgentState(
            key_set=b64decode(document["key_set"]),
            accepted={name: _accepted(one) for name, one in document["accepted"].items()},
            orders={scope: _order(one) for scope, one in document["orders"].items()},
            policies_before={
                name: Command.FromString(b64decode(one))
                for name, one in document["policies_before"].items()
            },
            lease=Lease(_version(document["lease"]["version"]), document["lease"]["expires_at_ns"]),
            latched=latched and Latch(Level[latched["level"]], latched["since_ns"]),
            snapshot=_version(document["snapshot"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, DecodeError) as error:
        raise StateCorruptedError(f"the state cannot be read: {error!r}") from None


def _text(content: bytes) -> str:
    return b64encode(content).decode()


def _version(pair: list[int]) -> tuple[int, int]:
    epoch, counter = pair
    return int(epoch), int(counter)


def _accepted_json(one: Accepted) -> dict[str, Any]:
    answer = one.answer and {
        name: getattr(one.answer, name) for name in CommandResult.__dataclass_fields__
    }
    return {
        "command": _text(one.command.SerializeToString()),
        "received_at_ns": one.received_at_ns,
        "answer": answer,
        "reported": one.reported,
    }


def _accepted(document: dict[str, Any]) -> Accepted:
    answer = document["answer"] and CommandResult(**document["answer"])
    return Accepted(
        Command.FromString(b64decode(document["command"])),
        document["received_at_ns"],
        answer,
        document["reported"],
    )


def _order_json(one: ScopeLevels) -> dict[str, Any]:
    temporary = [[each.level.name, each.until_ns] for each in one.temporary]
    return {
        "lasting": one.lasting.name if one.lasting is not None else None,
        "temporary": temporary,
    }


def _order(document: dict[str, Any]) -> ScopeLevels:
    temporary = tuple(Temporary(Level[name], until_ns) for name, until_ns in document["temporary"])
    return ScopeLevels(Level[document["lasting"]] if document["lasting"] else None, temporary)
