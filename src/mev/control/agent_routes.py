"""Routes of agents, below ``/api/control``: enrolment, the fleet, keys and the snapshot."""

import base64
import binascii
import json
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.routing import APIRoute

from mev.auth.dependencies import AgentsEnrol, AgentsRead, AgentsRevoke, KeysManage
from mev.control import validate, views
from mev.control.drafts import person
from mev.control.errors import InvalidCommandError, KeyNotProvenError
from mev.control.fleet import EnrolledAgent
from mev.control.pages import MOST_BYTES, Json, Limit, Pages, bounded
from mev.control.requests import EnrolIn, KeySetIn, LimitIn
from mev.control.service import Control
from mev.core.clock import now_ns
from mev.core.errors import NotFoundError
from mev.crypto import possession
from mev.wire.pb.control_pb2 import DeclaredAction, DeclaredLimit, DeclaredPolicyType, Enrolment

AgentSignature = Annotated[
    str, Header(alias=possession.HEADER, max_length=128, description="Ed25519, hexadecimal.")
]
_ENROLMENT_BYTES = 64 << 10  # of an enrolment without its schemas


def router(control: Control, pages: Pages, *, report_interval_s: float) -> APIRouter:
    """Return the routes; an agent is offline after three report intervals."""
    enrolment_bytes = (
        _ENROLMENT_BYTES + validate.SCHEMAS_PER_AGENT * control.settings.max_schema_bytes
    )
    routes = APIRouter()
    routes.include_router(_enrolments(control, report_interval_s, bounded(enrolment_bytes)))
    routes.include_router(_fleet(control, pages, report_interval_s))
    return routes


def _enrolments(
    control: Control, report_interval_s: float, route_class: type[APIRoute]
) -> APIRouter:
    routes = APIRouter(route_class=route_class)

    @routes.post("/agents", status_code=201, summary="Enrol an agent")
    async def enrol(
        who: AgentsEnrol, request: Request, body: EnrolIn, proof: AgentSignature = ""
    ) -> Json:
        """Enrol an agent; return the keys it must trust, and all active commands.

        The body must be signed with the private key of `public_key`, so that only the agent's owner
        can set its declarations.
        """
        validate.check_enrolment(body, max_schema_bytes=control.settings.max_schema_bytes)
        if not possession.is_proven(bytes.fromhex(body.public_key), await request.body(), proof):
            raise KeyNotProvenError(
                f"{possession.HEADER} is no signature of this body by the private key of "
                f"{body.public_key}; sign the bytes that are "
                "sent, as docs/wire-protocol.md says",
                field=possession.HEADER,
            )
        await control.enrolments.enrol(_enrolment(body), person(who))
        return {"agent_id": body.agent_id, **await _state(control, report_interval_s)}

    return routes


def _fleet(control: Control, pages: Pages, report_interval_s: float) -> APIRouter:
    routes, control_state = APIRouter(route_class=bounded(MOST_BYTES)), control.state
    silent_after_s = 3 * report_interval_s

    @routes.get("/agents", response_model=Json, summary="List the fleet")
    async def agents(who: AgentsRead, limit: Limit = 100, cursor: str | None = None) -> Response:
        """State, versions, models, lease, last report and last answer of every agent."""
        now = now_ns()

        def shown(member: EnrolledAgent) -> Json:
            return views.agent(
                member,
                now,
                silent_after_s=silent_after_s,
                conflicts=control_state.fleet.conflicts(member),
            )

        found = control_state.fleet.page(cursor or "", limit + 1)
        return await pages.first(who.id, [(each.id, each) for each in found], shown, limit)

    @routes.get("/agents/{agent_id}", response_model=Json, summary="Show an agent")
    async def one_agent(who: AgentsRead, agent_id: str) -> Response:
        """Return an agent with its declarations: actions with their schemas, policies, settings."""
        member = control_state.fleet.agents.get(agent_id)
        if member is None:
            raise NotFoundError(f"no agent {agent_id!r}", code="unknown_agent")
        found, now = member, now_ns()
        return await pages.one(
            who.id,
            lambda: (
                views.agent(
                    found,
                    now,
                    silent_after_s=silent_after_s,
                    conflicts=control_state.fleet.conflicts(found),
                )
                | {"declared": views.declared(found)}
            ),
        )

    @routes.delete("/agents/{agent_id}", status_code=204, summary="Let an agent go")
    async def revoke(who: AgentsRevoke, agent_id: str) -> None:
        """Revoke an agent: its reports are ignored, and another key can use its name."""
        await control.enrolments.revoke(agent_id, person(who))

    @routes.get("/snapshot", summary="Everything that is in force, signed")
    async def snapshot(_: AgentsEnrol) -> Json:
        """Return the state that an agent needs when it restarts."""
        return await _state(control, report_interval_s)

    @routes.post("/key-set", status_code=204, summary="Put a newer key set in force")
    async def key_set(who: KeysManage, body: KeySetIn) -> None:
        """Activate a key set signed by enough root keys of the active one.

        All active commands are issued again under it.
        """
        try:
            envelope = base64.b64decode(body.key_set, validate=True)
        except binascii.Error:
            raise InvalidCommandError("key_set: not base64", field="key_set") from None
        await control.adopt_key_set(envelope, person(who))

    return routes


def _enrolment(body: EnrolIn) -> Enrolment:
    return Enrolment(
        agent_id=body.agent_id,
        module=body.module,
        public_key=bytes.fromhex(body.public_key),
        software_version=body.software_version,
        actions=[
            DeclaredAction(
                name=each.name,
                description=each.description,
                params_schema_json=json.dumps(each.params, sort_keys=True),
                raises_risk=each.raises_risk,
            )
            for each in body.actions
        ],
        policy_types=dict.fromkeys([*body.policy_types, *(each.type for each in body.policies)]),
        policies=[
            DeclaredPolicyType(
                name=each.type, thresholds=map(_limit, each.thresholds), required=each.required
            )
            for each in body.policies
        ],
        configs=map(_limit, body.configs),
    )


def _limit(given: LimitIn) -> DeclaredLimit:
    tighter = f"TIGHTER_{given.tighter.upper()}" if given.tighter else None
    return DeclaredLimit(name=given.name, tighter=tighter, initial=given.initial)


async def _state(control: Control, report_interval_s: float) -> Json:
    snapshot = await control.snapshots.current()
    return {
        "key_set": base64.b64encode(control.state.keys.key_set_envelope).decode(),
        "snapshot": base64.b64encode(snapshot.envelope).decode(),
        "control_offset": snapshot.control_offset,
        "lease_ttl_s": control.settings.lease_ttl_s,
        "report_interval_s": report_interval_s,
    }
