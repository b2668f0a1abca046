"""Routes of commands, their answers and approvals, below ``/api/control``."""

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from mev.auth.dependencies import (
    ControlApprove,
    ControlCommand,
    ControlLower,
    ControlRead,
    ModelsDeploy,
)
from mev.auth.errors import ForbiddenError
from mev.auth.model import Permission
from mev.control import agent_routes, declared, drafts, policy_routes, views
from mev.control.actions import ActionCheck, fits, narrowed
from mev.control.drafts import IdempotencyKey, person, signed_by
from mev.control.errors import InvalidCommandError, RaisesLevelError
from mev.control.fleet import CONTROL_PLANE
from mev.control.pages import MOST_BYTES, Json, Limit, Pages, answer, bounded
from mev.control.requests import CommandIn, ConfigIn, KillSwitchIn, ModelSwapIn, VoteIn
from mev.control.runtime_config import RuntimeConfig
from mev.control.service import Control
from mev.core.clock import now_ns
from mev.core.errors import NotFoundError
from mev.wire.pb.control_pb2 import Command, Proposal, Target

_COMMAND_BYTES = 8 << 10  # of an action without its parameters


def router(control: Control, hot: RuntimeConfig, *, report_interval_s: float) -> APIRouter:
    """Return the routes of control; an agent is offline after three report intervals."""
    routes = APIRouter(prefix="/api/control", tags=["control"])
    pages, silent_after_s = Pages(), 3 * report_interval_s
    routes.include_router(
        _actions(control, bounded(_COMMAND_BYTES + 2 * control.settings.max_params_bytes))
    )
    routes.include_router(_orders(control, hot))
    routes.include_router(_approvals(control, pages))
    routes.include_router(policy_routes.router(control, pages, silent_after_s=silent_after_s))
    routes.include_router(_answers(control, pages, silent_after_s))
    routes.include_router(agent_routes.router(control, pages, report_interval_s=report_interval_s))
    return routes


def _actions(control: Control, route_class: type[APIRoute]) -> APIRouter:
    routes, control_state = APIRouter(route_class=route_class), control.state

    @routes.post("/command", status_code=202, summary="Order an action of a module")
    async def command(
        who: ControlCommand,
        request: Request,
        response: Response,
        body: CommandIn,
        idempotency_key: IdempotencyKey = "",
    ) -> Json:
        """Send an action to each agent whose declaration allows it; `not_sent_to` lists the others.

        If APPROVALS_REQUIRED is above 1, it is a proposal for agents that do not declare that the
        action raises no risk. `GET /commands/{id}` returns the agents' results.
        """
        draft = drafts.action(
            body, control_state.fleet, max_params_bytes=control.settings.max_params_bytes
        )
        check = await control.action_checks.check(draft, control_state.fleet)
        draft.target.CopyFrom(narrowed(draft.target, check))
        draft = signed_by(who, draft, request, body, idempotency_key)
        return await _order_action(control, draft, check, response) | check.view()

    return routes


def _orders(control: Control, hot: RuntimeConfig) -> APIRouter:
    routes, control_state = APIRouter(route_class=bounded(MOST_BYTES)), control.state

    @routes.post("/model-swap", status_code=202, summary="Load a model into running agents")
    async def model_swap(
        who: ModelsDeploy,
        request: Request,
        response: Response,
        body: ModelSwapIn,
        idempotency_key: IdempotencyKey = "",
    ) -> Json:
        """Swap a model; the path is below the agents' MODEL_DIR.

        The new model decides at once, which also requires the permission control:raise.
        """
        if not who.may(Permission.CONTROL_RAISE):
            raise ForbiddenError(
                f"a model that decides needs the permission {Permission.CONTROL_RAISE}"
            )
        draft = signed_by(
            who, drafts.model_swap(body, control_state.fleet), request, body, idempotency_key
        )
        return views.outcome(await control.order(draft), control.state.command_store, response)

    @routes.post(
        "/kill-switch", status_code=202, response_model=Json, summary="Stop, or allow again"
    )
    async def kill_switch(
        who: ControlLower,
        request: Request,
        response: Response,
        body: KillSwitchIn,
        idempotency_key: IdempotencyKey = "",
    ) -> Response | Json:
        """Lower the level at once, or raise it once APPROVALS_REQUIRED people agree.

        Until then, the response is a proposal.
        """
        draft = signed_by(
            who, drafts.level(body, control_state.fleet), request, body, idempotency_key
        )
        if not control.raises(draft):
            issued = await control.lower(draft)
            return answer(views.command(issued, control_state.command_store, deliveries=True), 202)
        if body.lower_only:
            raise RaisesLevelError(
                f"level {body.level} allows more than is ordered now, "
                "or calls back agents that stepped down"
            )
        if not who.may(Permission.CONTROL_RAISE):
            raise ForbiddenError(
                f"raising to {body.level} needs the permission {Permission.CONTROL_RAISE}"
            )
        if body.duration:
            raise InvalidCommandError("duration: only a lower level can expire", field="duration")
        return views.outcome(
            await control.raise_level(draft), control.state.command_store, response
        )

    @routes.get("/config", summary="List the settings that can change at runtime")
    async def settings(_: ControlRead) -> Json:
        """Return each setting of the control plane with the JSON Schema of its value."""
        return {"items": hot.schemas(), "next_cursor": None}

    @routes.post("/config", status_code=202, summary="Change a setting of the running system")
    async def config(
        who: ControlCommand,
        request: Request,
        response: Response,
        body: ConfigIn,
        idempotency_key: IdempotencyKey = "",
    ) -> Json:
        """Set a value on every replica of the control plane or, with a target, on agents.

        A value that may raise risk is a proposal if APPROVALS_REQUIRED is above 1.
        `not_declared_by` lists the agents of the target that do not have the setting.
        """
        draft = drafts.config(body, control_state.fleet, hot)
        not_declared = declared.check_config(
            body.config_key,
            [
                member
                for member in control_state.fleet.meant(draft.target)
                if member.module != CONTROL_PLANE
            ],
        )
        draft = signed_by(who, draft, request, body, idempotency_key)
        return views.outcome(await control.order(draft), control.state.command_store, response) | {
            "not_declared_by": not_declared
        }

    return routes


def _approvals(control: Control, pages: Pages) -> APIRouter:
    routes, control_state = APIRouter(route_class=bounded(MOST_BYTES)), control.state

    @routes.get("/approvals", response_model=Json, summary="List proposals, newest first")
    async def approvals(
        who: ControlRead,
        limit: Limit = 100,
        cursor: str | None = None,
        waiting_for_me: bool = False,
    ) -> Response:
        """Pending, issued, rejected and expired ones.

        `waiting_for_me` limits the list to pending ones that the caller may approve: the permission
        control:approve is there, and the same person has neither proposed nor approved it.
        """
        now = now_ns()
        newest = list(reversed(control_state.proposals.pending.items()))
        if waiting_for_me:
            may, voter = who.may(Permission.CONTROL_APPROVE), person(who)
            newest = [one for one in newest if may and one[1].is_waiting_for(voter, now)]
        return await pages.page(
            who.id, newest, lambda pending: views.proposal(pending, now), limit, cursor
        )

    @routes.post("/approvals/{proposal_id}", summary="Approve or reject a proposal")
    async def vote(who: ControlApprove, proposal_id: str, body: VoteIn) -> Json:
        """Vote on a proposal; the last approval needed issues the command.

        Each person can approve once.
        """
        return views.proposal(
            await control.approvals.vote(proposal_id, person(who), approve=body.approve), now_ns()
        )

    return routes


def _answers(control: Control, pages: Pages, silent_after_s: float) -> APIRouter:
    routes, control_state = APIRouter(), control.state
    silent_after_ns = round(silent_after_s * 1e9)

    @routes.get("/commands", response_model=Json, summary="List commands, newest first")
    async def commands(
        who: ControlRead, limit: Limit = 100, cursor: str | None = None, in_force: bool = False
    ) -> Response:
        """Each with the counts of its states, of all agents and of those that are online.

        `in_force` limits the list to active commands: levels, policies, models and settings.
        """
        now, kept = now_ns(), control_state.command_store.commands
        found = (
            {issued.command.id: issued for issued in control_state.command_store.in_force(now)}
            if in_force
            else kept
        )
        online = control_state.fleet.online(now - silent_after_ns)
        newest = list(reversed(found.items()))
        return await pages.page(
            who.id,
            newest,
            lambda issued: views.command(
                issued, control_state.command_store, deliveries=False, online=online
            ),
            limit,
            cursor,
        )

    @routes.get(
        "/commands/{command_id}", response_model=Json, summary="Ask what each agent answered"
    )
    async def one_command(who: ControlRead, command_id: str) -> Response:
        """Return a command with its state for each agent: NOT_SENT, STALE, SYNCED or ERROR.

        STALE means sent without a result. Each state has the time from acceptance to the agent's
        report; `online` is true if the agent has reported recently.
        """
        issued = control_state.command_store.commands.get(command_id)
        if issued is None:
            raise NotFoundError(
                f"no command {command_id!r}; "
                f"the newest {len(control_state.command_store.commands)} are kept",
                code="unknown_command",
            )
        store = control_state.command_store
        online = control_state.fleet.online(now_ns() - silent_after_ns)
        return await pages.with_rows(
            who.id,
            lambda: views.command(issued, store, deliveries=False, online=online),
            "deliveries",
            list(issued.deliveries.values()),
            lambda each: views.command_delivery(issued, store, each, online),
        )

    return routes


async def _order_action(
    control: Control, draft: Command, check: ActionCheck, response: Response
) -> Json:
    command_store, raising = control.state.command_store, {agent.id for agent in check.raising}
    at_once = [agent for agent in check.accepted if agent.id not in raising]
    why = (
        [f"{check.raising[0].id} does not declare that {draft.action.action!r} raises no risk"]
        if raising
        else []
    )
    if check.let_go and not fits(check.accepted):
        why.append(
            f"{check.let_go[0]}, which was let go, does not declare that"
            f" {draft.action.action!r} raises no risk"
        )
    if not (why and at_once and control.approvals.needed and fits(check.accepted)):
        return views.outcome(await control.order(draft, why), command_store, response)
    # Agents with other declarations must not delay it elsewhere, nor get it without approval.
    later = Proposal(draft=draft, raises=why)
    later.draft.target.CopyFrom(Target(agent_ids=raising))
    draft.target.CopyFrom(Target(agent_ids=[agent.id for agent in at_once]))
    issued = await control.issue(draft)
    return views.outcome(issued, command_store, response) | {
        "proposal": views.outcome(await control.approvals.propose(later), command_store, response)
    }
