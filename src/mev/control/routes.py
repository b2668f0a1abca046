"""``/api/control``."""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel

from mev.auth.dependencies import (
    AgentsEnrol,
    AgentsRead,
    AgentsRevoke,
    ControlApprove,
    ControlCommand,
    ControlLower,
    ControlRead,
    KeysManage,
    ModelsDeploy,
)
from mev.auth.errors import ForbiddenError
from mev.auth.model import MASTER, Permission, Principal
from mev.control import drafts, validate, views
from mev.control.diff import changes
from mev.control.errors import InvalidCommandError, UnknownCommandError
from mev.control.hot import HotSettings
from mev.control.ledger import Issued
from mev.control.model import CommandIn, ConfigIn, EnrolIn, KeySetIn, KillSwitchIn, ModelSwapIn, PolicyIn, VoteIn
from mev.control.proposals import Pending
from mev.control.service import Control
from mev.core.clock import now_ns
from mev.wire.pb.control_pb2 import Command, DeclaredAction, Enrolment

IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", max_length=128)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Json = dict[str, Any]


def router(control: Control, hot: HotSettings, *, report_interval_s: float) -> APIRouter:
    """Return the routes of control; an agent is silent after three report intervals."""
    routes = APIRouter(prefix="/api/control", tags=["control"])
    routes.include_router(_orders(control, hot))
    routes.include_router(_approvals(control))
    routes.include_router(_policies(control))
    routes.include_router(_answers(control))
    routes.include_router(_fleet(control, report_interval_s))
    return routes


def _orders(control: Control, hot: HotSettings) -> APIRouter:
    routes, book = APIRouter(), control.book

    @routes.post("/command", status_code=202, summary="Order an action of a module")
    async def command(who: ControlCommand, request: Request, body: CommandIn, idempotency_key: IdempotencyKey = "") -> Json:
        """The action and its parameters must be what the module declared. Ask `GET /commands/{id}` for the agents' answers."""
        draft = _signed_by(who, drafts.action(body, book.fleet), request, body, idempotency_key)
        return views.command(await control.issue(draft), deliveries=True)

    @routes.post("/policy", status_code=202, summary="Set a policy")
    async def policy(who: ControlCommand, request: Request, body: PolicyIn, idempotency_key: IdempotencyKey = "") -> Json:
        """Answers with what the new version changes."""
        draft = _signed_by(who, drafts.policy(body, book.fleet), request, body, idempotency_key)
        return await _set_policy(control, draft)

    @routes.post("/model-swap", status_code=202, summary="Load a model into running agents")
    async def model_swap(who: ModelsDeploy, request: Request, body: ModelSwapIn, idempotency_key: IdempotencyKey = "") -> Json:
        """The path is below the agents' MODEL_DIR. The model decides at once, which needs control:raise beside."""
        if not who.may(Permission.CONTROL_RAISE):
            raise ForbiddenError(f"a model that decides needs the permission {Permission.CONTROL_RAISE}")
        draft = _signed_by(who, drafts.model_swap(body, book.fleet), request, body, idempotency_key)
        return views.command(await control.issue(draft), deliveries=True)

    @routes.post("/kill-switch", status_code=202, summary="Stop, or allow again")
    async def kill_switch(
        who: ControlLower, request: Request, response: Response, body: KillSwitchIn, idempotency_key: IdempotencyKey = ""
    ) -> Json:
        """Lowering goes out at once. Raising needs as many people as APPROVALS_REQUIRED; until then the answer is a proposal."""
        draft = _signed_by(who, drafts.level(body, book.fleet), request, body, idempotency_key)
        if not control.raises(draft):
            return views.command(await control.lower(draft), deliveries=True)
        if not who.may(Permission.CONTROL_RAISE):
            raise ForbiddenError(f"raising to {body.level} needs the permission {Permission.CONTROL_RAISE}")
        if body.duration:
            raise InvalidCommandError("duration: only lowering can end by itself", field="duration")
        return _raised(await control.raise_level(draft), response)

    @routes.post("/config", status_code=202, summary="Change a setting of the running system")
    async def config(who: ControlCommand, request: Request, body: ConfigIn, idempotency_key: IdempotencyKey = "") -> Json:
        """Every replica of the control plane applies and acknowledges it; with a target, agents do."""
        draft = _signed_by(who, drafts.config(body, book.fleet, hot), request, body, idempotency_key)
        return views.command(await control.issue(draft), deliveries=True)

    return routes


def _approvals(control: Control) -> APIRouter:
    routes, book = APIRouter(), control.book

    @routes.get("/approvals", summary="List proposals, newest first")
    async def approvals(_: ControlRead, limit: Limit = 100, cursor: str | None = None) -> Json:
        """Pending, issued, rejected and expired ones."""
        now = now_ns()
        newest = list(reversed(book.proposals.pending.items()))
        return _page([(name, views.proposal(pending, now)) for name, pending in newest], limit, cursor)

    @routes.post("/approvals/{proposal_id}", summary="Approve or reject a proposal")
    async def vote(who: ControlApprove, proposal_id: str, body: VoteIn) -> Json:
        """The approval that makes them enough issues the command. Nobody approves twice."""
        return views.proposal(await control.vote(proposal_id, _person(who), approve=body.approve), now_ns())

    return routes


def _policies(control: Control) -> APIRouter:
    routes, book = APIRouter(), control.book

    @routes.get("/policies", summary="List the policies in force")
    async def policies(_: ControlRead, limit: Limit = 100, cursor: str | None = None) -> Json:
        """The latest version of each."""
        latest = {i.command.policy.policy_id: i for i in book.ledger.commands.values() if i.command.WhichOneof("body") == "policy"}
        return _page([(name, views.command(issued, deliveries=False)) for name, issued in sorted(latest.items())], limit, cursor)

    @routes.get("/policies/{policy_id}/versions", summary="List a policy's versions, newest first")
    async def policy_versions(_: ControlRead, policy_id: str, limit: Limit = 100, cursor: str | None = None) -> Json:
        """Each with what it changed."""
        history = book.ledger.history(f"policy:{policy_id}")
        befores = [*(issued.command.policy for issued in history[1:]), None][: len(history)]
        views_ = [
            (i.command.id, views.command(i, deliveries=False) | {"diff": changes(before, i.command.policy)})
            for i, before in zip(history, befores, strict=True)
        ]
        return _page(views_, limit, cursor)

    @routes.post("/policies/{policy_id}/rollback", status_code=202, summary="Return to the version before")
    async def rollback(who: ControlCommand, policy_id: str) -> Json:
        """Issues the version before the one in force as a new one."""
        history = book.ledger.history(f"policy:{policy_id}")
        if len(history) < 2:
            raise UnknownCommandError(f"policy {policy_id!r} has no version before the one in force")
        draft = Command(policy=history[1].command.policy, target=history[1].command.target, priority=5)
        draft.issuer.principal = _person(who)
        return await _set_policy(control, draft)

    return routes


def _answers(control: Control) -> APIRouter:
    routes, book = APIRouter(), control.book

    @routes.get("/commands", summary="List commands, newest first")
    async def commands(_: ControlRead, limit: Limit = 100, cursor: str | None = None) -> Json:
        """Each with the counts of its states."""
        newest = list(reversed(book.ledger.commands.values()))
        return _page([(issued.command.id, views.command(issued, deliveries=False)) for issued in newest], limit, cursor)

    @routes.get("/commands/{command_id}", summary="Ask what each agent answered")
    async def one_command(_: ControlRead, command_id: str) -> Json:
        """NOT_SENT, STALE (sent, no answer), SYNCED or ERROR for each agent, with the time from acceptance to its report."""
        issued = book.ledger.commands.get(command_id)
        if issued is None:
            raise UnknownCommandError(f"no command {command_id!r}; the newest {len(book.ledger.commands)} are kept")
        return views.command(issued, deliveries=True)

    return routes


def _fleet(control: Control, report_interval_s: float) -> APIRouter:
    routes, book = APIRouter(), control.book
    silent_after_s = 3 * report_interval_s

    @routes.get("/agents", summary="List the fleet")
    async def agents(_: AgentsRead, limit: Limit = 100, cursor: str | None = None) -> Json:
        """State, versions, lease, last sign of life and clock offset of every agent."""
        now = now_ns()
        members = sorted(book.fleet.agents.items())
        return _page([(name, views.agent(member, now, silent_after_s=silent_after_s)) for name, member in members], limit, cursor)

    @routes.post("/agents", status_code=201, summary="Enrol an agent")
    async def enrol(who: AgentsEnrol, body: EnrolIn) -> Json:
        """Answers with the keys it has to trust and everything that is in force."""
        validate.check_enrolment(body)
        await control.enrolments.enrol(_enrolment(body), _person(who))
        return {"agent_id": body.agent_id, **_state(control, report_interval_s)}

    @routes.delete("/agents/{agent_id}", status_code=204, summary="Let an agent go")
    async def revoke(who: AgentsRevoke, agent_id: str) -> None:
        """Its reports count no more, and its name is free for another key."""
        await control.enrolments.revoke(agent_id, _person(who))

    @routes.get("/snapshot", summary="Everything that is in force, signed")
    async def snapshot(_: AgentsEnrol) -> Json:
        """What an agent asks for when it returns."""
        return _state(control, report_interval_s)

    @routes.post("/key-set", status_code=204, summary="Put a newer key set in force")
    async def key_set(who: KeysManage, body: KeySetIn) -> None:
        """Signed by enough root keys of the one in force; what is in force is ordered again under it."""
        try:
            envelope = base64.b64decode(body.key_set, validate=True)
        except binascii.Error:
            raise InvalidCommandError("key_set: not base64", field="key_set") from None
        await control.adopt_key_set(envelope, _person(who))

    return routes


def _person(who: Principal) -> str:
    """Return the person behind a principal: whoever has the master key made its keys, and is one person however many they are."""
    return who.user or MASTER.id


def _signed_by(who: Principal, draft: Command, request: Request, body: BaseModel, idempotency_key: str) -> Command:
    if idempotency_key.startswith("deployment:"):  # whoever had the key of a coming order of a deployment could keep it from being issued
        raise InvalidCommandError("Idempotency-Key: deployment:... is for the orders of deployments", field="Idempotency-Key")
    draft.issuer.principal = _person(who)
    draft.idempotency_key = idempotency_key
    draft.request_sha256 = drafts.request_hash(request.url.path, body)
    return draft


async def _set_policy(control: Control, draft: Command) -> Json:
    history = control.book.ledger.history(f"policy:{draft.policy.policy_id}")
    before = history[0].command.policy if history else None
    return views.command(await control.issue(draft), deliveries=True) | {"diff": changes(before, draft.policy)}


def _raised(outcome: Issued | Pending, response: Response) -> Json:
    if isinstance(outcome, Issued):
        return views.command(outcome, deliveries=True)
    response.headers["Location"] = f"/api/control/approvals/{outcome.proposal.id}"
    return views.proposal(outcome, now_ns())


def _enrolment(body: EnrolIn) -> Enrolment:
    return Enrolment(
        agent_id=body.agent_id,
        module=body.module,
        public_key=bytes.fromhex(body.public_key),
        software_version=body.software_version,
        actions=[
            DeclaredAction(name=each.name, description=each.description, params_schema_json=json.dumps(each.params))
            for each in body.actions
        ],
        policy_types=body.policy_types,
    )


def _state(control: Control, report_interval_s: float) -> Json:
    return {
        "key_set": base64.b64encode(control.book.keys.key_set_envelope).decode(),
        "snapshot": base64.b64encode(control.snapshot()).decode(),
        "control_offset": control.control_offset,
        "lease_ttl_s": control.terms.lease_ttl_s,
        "report_interval_s": report_interval_s,
    }


def _page(rows: Sequence[tuple[str, Json]], limit: int, cursor: str | None) -> Json:
    """Return the rows after the one named `cursor`.

    :raises InvalidCommandError: when there is none of that name: beginning again would look like more pages.
    """
    start = next((index + 1 for index, (name, _) in enumerate(rows) if name == cursor), None if cursor else 0)
    if start is None:
        raise InvalidCommandError("cursor: not one of this list; start again without it", field="cursor")
    page = rows[start : start + limit]
    more = start + limit < len(rows)
    return {"items": [view for _, view in page], "next_cursor": page[-1][0] if more else None}
