"""Commands, agents and proposals as the API shows them."""

from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format

from mev.control.fleet import Agent
from mev.control.ledger import Delivery, Issued, State
from mev.control.proposals import Pending
from mev.wire.pb.control_pb2 import Level

_NS = 1_000_000_000


def time(ns: int) -> str | None:
    """Return a time as ISO 8601 in UTC, or None for 0."""
    return datetime.fromtimestamp(ns / _NS, UTC).isoformat(timespec="milliseconds") if ns else None


def level(number: int) -> str:
    """Return a level's name."""
    return Level.Name(number)


def command(issued: Issued, *, deliveries: bool) -> dict[str, Any]:
    """Return a command with the counts of its states, and each delivery when `deliveries`."""
    order = issued.command
    kind = order.WhichOneof("body") or ""
    body = json_format.MessageToDict(getattr(order, kind), preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    states = [issued.state(delivery) for delivery in issued.deliveries.values()]
    view: dict[str, Any] = {
        "id": order.id,
        "kind": kind,
        "body": body,
        "target": json_format.MessageToDict(order.target, preserving_proto_field_name=True),
        "priority": order.priority,
        "issuer": order.issuer.principal,
        "approvers": list(order.issuer.approvers),
        "issued_at": time(order.issued_at_ns),
        "expires_at": time(order.expires_at_ns),
        "version": {"epoch": order.version.epoch, "counter": order.version.counter},
        "published": issued.published,
        "superseded_by": issued.superseded_by or None,
        "states": {state.value: states.count(state) for state in State},
    }
    if deliveries:
        view["deliveries"] = [delivery(issued, each) for each in issued.deliveries.values()]
    return view


def delivery(issued: Issued, answer: Delivery) -> dict[str, Any]:
    """Return one agent's answer; latency is from acceptance to the report's arrival."""
    return {
        "agent_id": answer.agent_id,
        "state": issued.state(answer).value,
        "reason_code": answer.reason_code or None,
        "detail": answer.detail or None,
        "reported_at": time(answer.arrived_at_ns),
        "latency_ms": round(answer.latency_ns / 1e6, 3) if answer.result else None,
    }


def agent(member: Agent, now_ns: int, *, silent_after_s: float) -> dict[str, Any]:
    """Return an agent; it is online when it has reported within `silent_after_s`."""
    running = member.running
    return {
        "agent_id": member.id,
        "module": member.module,
        "online": now_ns - member.last_seen_ns < silent_after_s * _NS,
        "last_seen": time(member.last_seen_ns),
        "level": level(running.level) if member.last_seen_ns else None,
        "ordered_level": level(running.ordered_level) if member.last_seen_ns else None,
        "stepped_down": running.stepped_down or None,
        "lease_expires_at": time(running.lease_expires_at_ns),
        "policies": {name: version.counter for name, version in running.policies.items()},
        "configs": {name: version.counter for name, version in running.configs.items()},
        "model": {"id": running.model_id or None, "version": running.model_version or None, "sha256": running.model_sha256.hex() or None},
        "key_epoch": running.key_epoch,
        "clock_offset_ms": round(member.clock_offset_ns / 1e6, 3),
        "uptime_s": round(member.uptime_ns / _NS, 1),
        "software_version": member.enrolment.software_version,
        "actions": [action.name for action in member.enrolment.actions],
        "enrolled_at": time(member.enrolment.enrolled_at_ns),
    }


def proposal(pending: Pending, now_ns: int) -> dict[str, Any]:
    """Return a proposal and what people said to it."""
    draft = pending.proposal.draft
    return {
        "id": pending.proposal.id,
        "state": pending.state(now_ns),
        "level": level(draft.level.level),
        "reason": draft.level.reason,
        "target": json_format.MessageToDict(draft.target, preserving_proto_field_name=True),
        "proposed_by": draft.issuer.principal,
        "approvers": pending.approvers,
        "rejected_by": pending.rejected_by or None,
        "approvals_required": pending.proposal.approvals_required,
        "proposed_at": time(pending.proposal.proposed_at_ns),
        "expires_at": time(pending.proposal.expires_at_ns),
        "command_id": pending.command_id or None,
    }
