"""What an agent must not forget: the newest version of everything, what is in force, what it answered.

A value: every change makes a new one, which is on disk before it takes effect.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import DecodeError

from mev.agent.level import Latch, Lease, Level, Order, Temporary
from mev.core.errors import MevError
from mev.wire.orders import order
from mev.wire.pb.control_pb2 import Command, SwapModel

_FORMAT = 1


class StateCorruptedError(MevError):
    """The agent's state cannot be read."""

    code = "agent_state_corrupted"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended; without `reason_code` it was applied."""

    reason_code: str = ""
    detail: str = ""
    received_at_ns: int = 0
    applied_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The newest command on one object. Without an answer it is not known to have taken effect."""

    command: Command
    received_at_ns: int
    answer: Answer | None = None
    reported: bool = False

    @property
    def version(self) -> tuple[int, int]:
        """Its version, to compare."""
        return order(self.command.version)

    @property
    def in_force(self) -> bool:
        """Whether it was not refused in the end."""
        return self.answer is None or not self.answer.reason_code

    @property
    def swap(self) -> SwapModel | None:
        """The swap of models that it is, if it is one."""
        return self.command.model if self.command.WhichOneof("body") == "model" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that outlives the process. `key_set` is the envelope it came in."""

    key_set: bytes
    accepted: Mapping[str, Accepted] = field(default_factory=dict)
    orders: Mapping[str, Order] = field(default_factory=dict)
    policies_before: Mapping[str, Command] = field(default_factory=dict)
    lease: Lease = field(default_factory=Lease)
    latched: Latch | None = None
    snapshot: tuple[int, int] = (0, 0)

    def accept(self, objects: Mapping[str, Accepted]) -> "State":
        """Return the state with newer commands on `objects`."""
        return replace(self, accepted={**self.accepted, **objects})

    def answered(self, command_id: str, answer: Answer) -> "State":
        """Return the state that knows how a command ended."""
        known = {name: replace(one, answer=answer) for name, one in self.accepted.items() if one.command.id == command_id}
        return self.accept(known)

    def reported(self, command_ids: set[str]) -> "State":
        """Return the state that knows which answers the control plane has."""
        return self.accept({name: replace(one, reported=True) for name, one in self.accepted.items() if one.command.id in command_ids})

    def policies(self, now_ns: int) -> dict[str, Command]:
        """Return the policies in force, by id: until a new one begins, the one before it."""
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


def to_json(state: State) -> bytes:
    """Return `state` as it is kept on disk."""
    document = {
        "format": _FORMAT,
        "key_set": _text(state.key_set),
        "accepted": {name: _accepted_json(one) for name, one in state.accepted.items()},
        "orders": {scope: _order_json(one) for scope, one in state.orders.items()},
        "policies_before": {name: _text(one.SerializeToString()) for name, one in state.policies_before.items()},
        "lease": {"version": state.lease.version, "expires_at_ns": state.lease.expires_at_ns},
        "latched": state.latched and {"level": state.latched.level.name, "since_ns": state.latched.since_ns},
        "snapshot": state.snapshot,
    }
    return json.dumps(document, indent=1).encode()


def from_json(content: bytes) -> State:
    """Return the state kept as `content`.

    :raises StateCorruptedError: when it is none. An agent must not begin anew then: it would obey old commands again.
    """
    try:
        document = json.loads(content)
        if document["format"] != _FORMAT:
            raise StateCorruptedError(f"state of format {document['format']}; this version reads {_FORMAT}")
        latched = document["latched"]
        return State(
            key_set=b64decode(document["key_set"]),
            accepted={name: _accepted(one) for name, one in document["accepted"].items()},
            orders={scope: _order(one) for scope, one in document["orders"].items()},
            policies_before={name: Command.FromString(b64decode(one)) for name, one in document["policies_before"].items()},
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
    answer = one.answer and {name: getattr(one.answer, name) for name in Answer.__dataclass_fields__}
    return {
        "command": _text(one.command.SerializeToString()),
        "received_at_ns": one.received_at_ns,
        "answer": answer,
        "reported": one.reported,
    }


def _accepted(document: dict[str, Any]) -> Accepted:
    answer = document["answer"] and Answer(**document["answer"])
    return Accepted(Command.FromString(b64decode(document["command"])), document["received_at_ns"], answer, document["reported"])


def _order_json(one: Order) -> dict[str, Any]:
    temporary = [[each.level.name, each.until_ns] for each in one.temporary]
    return {"lasting": one.lasting.name if one.lasting is not None else None, "temporary": temporary}


def _order(document: dict[str, Any]) -> Order:
    temporary = tuple(Temporary(Level[name], until_ns) for name, until_ns in document["temporary"])
    return Order(Level[document["lasting"]] if document["lasting"] else None, temporary)
