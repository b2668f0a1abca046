"""Representations of commands, agents and proposals in the API."""

import json
from collections.abc import Sequence, Set
from datetime import UTC, datetime
from typing import Any

from fastapi import Response
from google.protobuf import json_format

from mev.control.command_store import CommandRecord, CommandStore, Delivery, DeliveryState
from mev.control.fleet import AgentAnswer, EnrolledAgent
from mev.control.policies import PolicyStatus
from mev.control.proposals import Pending
from mev.core.clock import now_ns
from mev.core.text import shown
from mev.wire.pb.control_pb2 import (
    ACK,
    SHADOW,
    TIGHTER_UNSPECIFIED,
    Command,
    DeclaredLimit,
    Level,
    ModelUse,
    Tighter,
)

_NS = 1_000_000_000
_MOST_SAID, _MOST_REASONS, _MOST_MODELS = 100, 10, 10  # agents may report anything
_SHA256_BYTES = 32


def time(ns: int) -> str | None:
    """Return a time as ISO 8601 in UTC, or None for 0."""
    return datetime.fromtimestamp(ns / _NS, UTC).isoformat(timespec="milliseconds") if ns else None


def level(number: int) -> str:
    """Return the name of a level."""
    return Level.Name(number)


def command(
    issued: CommandRecord,
    command_store: CommandStore,
    *,
    deliveries: bool,
    online: Set[str] | None = None,
) -> dict[str, Any]:
    """Return a command with the number of agents in each state.

    `refused` marks a setting that agents refused; it is not in force. With `deliveries`, each
    delivery is included, with the newer command that its agent obeys instead. With `online`, the
    states of those agents are counted separately, and each delivery has `online`.
    """
    order = issued.command
    view: dict[str, Any] = {
        "id": order.id,
        "kind": order.WhichOneof("body") or "",
        "body": _body(order),
        "target": json_format.MessageToDict(order.target, preserving_proto_field_name=True),
        "priority": order.priority,
        "issuer": order.issuer.principal,
        "approvers": list(order.issuer.approvers),
        "issued_at": time(order.issued_at_ns),
        "expires_at": time(order.expires_at_ns),
        "version": {"epoch": order.version.epoch, "counter": order.version.counter},
        "published": issued.published,
        "superseded_by": command_store.superseded_by(issued) or None,
        "refused": issued.is_refused,
        "states": _counts(issued, None),
    }
    if online is not None:
        view["states_online"] = _counts(issued, online)
    if deliveries:
        view["deliveries"] = [
            command_delivery(issued, command_store, each, online)
            for each in issued.deliveries.values()
        ]
    return view


def outcome(
    issued: CommandRecord | Pending, command_store: CommandStore, response: Response
) -> dict[str, Any]:
    """Return the answer to an order: the command, or the proposal that it became."""
    if isinstance(issued, CommandRecord):
        return command(issued, command_store, deliveries=True)
    response.headers["Location"] = f"/api/control/approvals/{issued.proposal.id}"
    return proposal(issued, now_ns())


def _counts(issued: CommandRecord, among: Set[str] | None) -> dict[str, int]:
    return {state.value: number for state, number in issued.counts(among).items()}


def command_delivery(
    issued: CommandRecord,
    command_store: CommandStore,
    answer: Delivery,
    online: Set[str] | None,
) -> dict[str, Any]:
    """Return one agent's result, with the newer command that it obeys instead."""
    return (
        delivery(issued, answer)
        | {"superseded_by": command_store.superseded_at(issued, answer.agent_id) or None}
        | ({} if online is None else {"online": answer.agent_id in online})
    )


def _body(order: Command) -> dict[str, Any]:
    body = getattr(order, order.WhichOneof("body") or "")
    return json_format.MessageToDict(
        body, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def delivery(issued: CommandRecord, answer: Delivery) -> dict[str, Any]:
    """Return one agent's result; latency is from acceptance to the report's arrival."""
    return {
        "agent_id": answer.agent_id,
        "state": issued.state(answer).value,
        "reason_code": answer.reason_code or None,
        "detail": answer.detail or None,
        "reported_at": time(answer.arrived_at_ns),
        "latency_ms": round(answer.latency_ns / 1e6, 3) if answer.result else None,
    }


def is_online(member: EnrolledAgent, now_ns: int, *, silent_after_s: float) -> bool:
    """Return whether an agent has reported within `silent_after_s`."""
    return now_ns - member.last_seen_ns < silent_after_s * _NS


def policy(
    status: PolicyStatus, command_store: CommandStore, *, deliveries: bool
) -> dict[str, Any]:
    """Return a version of a policy with the results of its target agents."""
    issued, refusing = status.issued, set(status.refused_by)
    refused = [
        delivery(issued, answer) for name, answer in issued.deliveries.items() if name in refusing
    ]
    return command(issued, command_store, deliveries=deliveries) | {
        "policy_id": issued.command.policy.policy_id,
        "state": status.state.value,
        "effective_from": time(issued.command.policy.effective_from_ns),
        "acknowledged_by": status.acknowledged_by,
        "refused_by": [
            {name: each[name] for name in ("agent_id", "reason_code", "detail")} for each in refused
        ],
        "waiting_for": status.waiting_for,
    }


def agent(
    member: EnrolledAgent, now_ns: int, *, silent_after_s: float, conflicts: Sequence[str]
) -> dict[str, Any]:
    """Return an agent; its level is shown only if it has reported within `silent_after_s`.

    `conflicts` are its actions for which agents of its module declare different schemas. The rest
    of its lease is that at the agent, whose clock may differ from ours.
    """
    running, online = member.running, is_online(member, now_ns, silent_after_s=silent_after_s)
    return {
        "agent_id": member.id,
        "module": member.module,
        "online": online,
        "last_seen": time(member.last_seen_ns),
        "level": level(running.level) if online else None,
        "ordered_level": level(running.ordered_level) if online else None,
        "stepped_down": running.stepped_down or None,
        "blocked_by": [shown(name[:_MOST_SAID]) for name in running.blocked_by[:_MOST_REASONS]],
        "lease_expires_at": time(running.lease_expires_at_ns),
        "lease_remaining_s": _remaining_s(member, now_ns),
        "policies": {name: version.counter for name, version in running.policies.items()},
        "configs": {name: version.counter for name, version in running.configs.items()},
        "model": {
            "id": running.model_id or None,
            "version": running.model_version or None,
            "sha256": running.model_sha256.hex() or None,
        },
        "models": [_model(use) for use in running.models[:_MOST_MODELS]],
        "last_answer": _answer(member.last_answer),
        "key_epoch": running.key_epoch,
        "clock_offset_ms": round(member.clock_offset_ns / 1e6, 3),
        "uptime_s": round(member.uptime_ns / _NS, 1),
        "software_version": member.enrolment.software_version,
        "actions": [action.name for action in member.enrolment.actions],
        "action_conflicts": list(conflicts),
        "required_policies": [each.name for each in member.enrolment.policies if each.required],
        "missing_policies": list(running.missing_policies),
        "enrolled_at": time(member.enrolment.enrolled_at_ns),
    }


def _remaining_s(member: EnrolledAgent, now_ns: int) -> float | None:
    expires_at_ns = member.running.lease_expires_at_ns
    if not expires_at_ns:
        return None
    return round(max(0, expires_at_ns - now_ns - member.clock_offset_ns) / _NS, 3)


def _model(use: ModelUse) -> dict[str, Any]:
    return {
        "role": "shadow" if use.role == SHADOW else "production",
        "id": shown(use.model_id[:_MOST_SAID]),
        "sha256": use.sha256[:_SHA256_BYTES].hex() or None,
        "since": time(use.since_ns),
    }


def _answer(last: AgentAnswer | None) -> dict[str, Any] | None:
    if last is None:
        return None
    return {
        "command_id": shown(last.command_id),
        "state": (DeliveryState.SYNCED if last.result == ACK else DeliveryState.ERROR).value,
        "reason_code": shown(last.reason_code) or None,
        "reported_at": time(last.arrived_at_ns),
    }


def declared(member: EnrolledAgent) -> dict[str, Any]:
    """Return an agent's declarations: actions with the schema of their parameters, and limits."""
    enrolment = member.enrolment
    return {
        "actions": [
            {
                "name": action.name,
                "description": action.description,
                "raises_risk": action.raises_risk if action.HasField("raises_risk") else True,
                "params": json.loads(action.params_schema_json or "{}"),
            }
            for action in enrolment.actions
        ],
        "policies": [
            {
                "type": policy.name,
                "required": policy.required,
                "thresholds": [_limit(each) for each in policy.thresholds],
            }
            for policy in enrolment.policies
        ],
        "configs": [_limit(each) for each in enrolment.configs],
    }


def _limit(limit: DeclaredLimit) -> dict[str, Any]:
    tighter = Tighter.Name(limit.tighter).removeprefix("TIGHTER_").lower()
    return {
        "name": limit.name,
        "tighter": None if limit.tighter == TIGHTER_UNSPECIFIED else tighter,
        "initial": limit.initial if limit.HasField("initial") else None,
    }


def proposal(pending: Pending, now_ns: int) -> dict[str, Any]:
    """Return a proposal and its votes."""
    draft = pending.proposal.draft
    kind = draft.WhichOneof("body") or "deployment"
    raises = list(pending.proposal.raises)
    return {
        "id": pending.proposal.id,
        "state": pending.state(now_ns),
        "kind": kind,
        "body": json.loads(pending.proposal.deployment_json)
        if kind == "deployment"
        else _body(draft),
        "raises": raises,
        "level": level(draft.level.level) if kind == "level" else None,
        "reason": draft.level.reason if kind == "level" else "; ".join(raises),
        "target": json_format.MessageToDict(draft.target, preserving_proto_field_name=True),
        "proposed_by": draft.issuer.principal,
        "approvers": pending.approvers,
        "rejected_by": pending.rejected_by or None,
        "approvals_required": pending.proposal.approvals_required,
        "proposed_at": time(pending.proposal.proposed_at_ns),
        "expires_at": time(pending.proposal.expires_at_ns),
        "command_id": (pending.command_id or None) if kind != "deployment" else None,
        "deployment_id": (pending.command_id or None) if kind == "deployment" else None,
    }
