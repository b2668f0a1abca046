"""Routes of policies, below ``/api/control``."""

from functools import partial

from fastapi import APIRouter, Request, Response

from mev.auth.dependencies import ControlCommand, ControlRead
from mev.control import declared, drafts, policies, views
from mev.control.command_store import CommandRecord
from mev.control.drafts import IdempotencyKey, person, signed_by
from mev.control.pages import Json, Limit, Pages, bounded
from mev.control.policies import changes
from mev.control.requests import PolicyIn
from mev.control.service import Control
from mev.core.clock import now_ns
from mev.wire.pb.control_pb2 import Command

_POLICY_BYTES = 384 << 10  # a command has at most 256 KiB


def router(control: Control, pages: Pages, *, silent_after_s: float) -> APIRouter:
    """Return the routes; an agent is offline after `silent_after_s`."""
    routes, control_state = APIRouter(route_class=bounded(_POLICY_BYTES)), control.state

    def shown(issued: CommandRecord, *, deliveries: bool = False) -> Json:
        now = now_ns()
        online = partial(views.is_online, now_ns=now, silent_after_s=silent_after_s)
        return views.policy(
            policies.status(issued, control_state, online, now),
            control_state.command_store,
            deliveries=deliveries,
        )

    @routes.post("/policy", status_code=202, summary="Set a policy")
    async def policy(
        who: ControlCommand,
        request: Request,
        response: Response,
        body: PolicyIn,
        idempotency_key: IdempotencyKey = "",
    ) -> Json:
        """Issue a new version of a policy; the answer shows its changes.

        A version that loosens limits is a proposal if APPROVALS_REQUIRED is above 1.
        """
        draft = signed_by(
            who, drafts.policy(body, control_state.fleet), request, body, idempotency_key
        )
        return await _set_policy(control, draft, response)

    @routes.get("/policies", response_model=Json, summary="List policies with what agents answered")
    async def list_policies(
        who: ControlRead, limit: Limit = 100, cursor: str | None = None
    ) -> Response:
        """List the newest version of each policy.

        `state` is `in_force` only once the agents have acknowledged the version.
        """
        return await pages.page(
            who.id, list(policies.newest(control_state).items()), shown, limit, cursor
        )

    @routes.get(
        "/policies/{policy_id}",
        response_model=Json,
        summary="Show a policy with each agent's answer",
    )
    async def one_policy(who: ControlRead, policy_id: str) -> Response:
        """The newest version, and the last one that agents acknowledged."""
        versions = policies.history(control_state, policy_id)
        last = policies.last_acknowledged(versions)
        return await pages.one(
            who.id,
            lambda: (
                shown(versions[0], deliveries=True)
                | {"last_acknowledged": shown(last) if last else None}
            ),
        )

    @routes.get(
        "/policies/{policy_id}/versions",
        response_model=Json,
        summary="List a policy's versions, newest first",
    )
    async def policy_versions(
        who: ControlRead, policy_id: str, limit: Limit = 100, cursor: str | None = None
    ) -> Response:
        """Each with what it changed and who acknowledged it."""
        versions = policies.history(control_state, policy_id)
        befores = [*(issued.command.policy for issued in versions[1:]), None]
        last = policies.last_acknowledged(versions)
        superseded_from = next(
            (number + 1 for number, issued in enumerate(versions) if issued is last), len(versions)
        )

        def row(number: int) -> Json:
            found = shown(versions[number]) | {
                "diff": changes(befores[number], versions[number].command.policy)
            }
            if number >= superseded_from and found["acknowledged_by"]:
                found["state"] = policies.PolicyState.SUPERSEDED.value
            return found

        rows = [(issued.command.id, number) for number, issued in enumerate(versions)]
        return await pages.page(who.id, rows, row, limit, cursor)

    @routes.post(
        "/policies/{policy_id}/rollback",
        status_code=202,
        summary="Return to the last acknowledged version before",
    )
    async def rollback(who: ControlCommand, response: Response, policy_id: str) -> Json:
        """Issue the last different version that agents acknowledged as a new version.

        It is a proposal if it loosens limits.
        """
        earlier = policies.before(policies.history(control_state, policy_id)).command
        draft = Command(policy=earlier.policy, target=earlier.target, priority=5)
        draft.issuer.principal = person(who)
        return await _set_policy(control, draft, response)

    return routes


async def _set_policy(control: Control, draft: Command, response: Response) -> Json:
    not_declared = declared.check_policy(draft.policy, control.state.fleet.meant(draft.target))
    newest = policies.newest(control.state).get(draft.policy.policy_id)
    diff = changes(newest.command.policy if newest else None, draft.policy)
    return views.outcome(await control.order(draft), control.state.command_store, response) | {
        "diff": diff,
        "not_declared_by": not_declared,
    }
