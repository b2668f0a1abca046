"""Routes under ``/api/training``: deploy models, list and show deployments."""

import hashlib
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Header, Query, Response
from pydantic import AfterValidator, Field, model_validator

from mev.auth.dependencies import ModelsDeploy, ModelsRead
from mev.auth.model import MASTER, Principal
from mev.control.proposals import Pending
from mev.control.views import proposal
from mev.core.body import Body, Items
from mev.core.clock import now_ns
from mev.core.query import QueryInt
from mev.core.text import check_printable
from mev.rollout.admission import DEFAULT_SHARE, DeploymentRequest
from mev.rollout.model import DeploymentState, Stage
from mev.rollout.service import Deployments
from mev.rollout.views import DeploymentOut, DeploymentsOut, shown

PATH = "/api/training"
IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", max_length=128)]
Limit = Annotated[QueryInt, Query(ge=1, le=1000)]
Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class RulesIn(Body):
    """Conditions of a stage before the next; omitted fields are unchanged, null disables one."""

    min_scored: Count = Field(
        1000, description="Opportunities the model has scored, at all agents together."
    )
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = Field(
        0.01, description="Largest share of opportunities that could not be scored."
    )
    max_latency_p99_us: Bound | None = Field(
        5000.0, description="99th percentile of scoring latency at the slowest agent."
    )
    max_score_psi: Bound | None = Field(
        0.25, description="Drift of the scores against training at the worst agent."
    )
    max_feature_psi: Bound | None = Field(
        None, description="Drift of the worst feature; off by default."
    )
    hold_s: Annotated[float, Field(ge=0, le=2_592_000)] = Field(
        600.0, description="Time that all live agents must have had the model."
    )
    ack_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        60.0, description="Time a live agent may leave the command unanswered."
    )
    canary_min_age_s: Annotated[float, Field(ge=0, le=2_592_000)] = Field(
        0.0, description="Minimum time since enrolment of a canary."
    )


class DeployIn(Body):
    """A stage for a model."""

    stage: Stage
    module: Name | None = Field(
        None, description="Module of the agents; optional where there is only one."
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        DEFAULT_SHARE,
        description=(
            "shadow: share of the opportunities scored by both models; canary: share of the live"
            " agents, at least one."
        ),
    )
    agent_ids: Annotated[Items[Name], Field(max_length=1000)] = Field(
        [], description="canary: these, in the place of a share."
    )
    form: Literal["mevt", "so"] | None = Field(
        None, description="Form of the model; data-only by default, where there is one."
    )
    rules: RulesIn | None = None
    promote: bool = Field(
        False, description="Advance to the next stage automatically once the rules pass."
    )
    reason: Annotated[str, Field(max_length=500), AfterValidator(check_printable)] = ""

    @model_validator(mode="after")
    def _names_canaries_only(self) -> Self:
        if self.agent_ids and self.stage is not Stage.CANARY:
            raise ValueError("agent_ids: they name canaries, and are for the stage canary")
        return self


def router(deployments: Deployments) -> APIRouter:
    """Return the routes of deployments."""
    routes = APIRouter(prefix=PATH, tags=["training"])
    records = deployments.records

    @routes.post(
        "/models/{model}/deploy",
        status_code=202,
        summary="Deploy a model, advance it, or roll it back",
    )
    async def deploy(
        who: ModelsDeploy,
        response: Response,
        model: str,
        body: DeployIn,
        idempotency_key: IdempotencyKey = "",
    ) -> DeploymentOut | dict[str, Any]:
        """Deploy a model by its id or an alias.

        Production, and canaries at most agents, also need `control:raise`; taking them back needs
        `control:lower`. `GET /deployments/{id}` shows the progress. Where APPROVALS_REQUIRED is
        above 1, every stage except shadow becomes a proposal first, with its path in `Location`.
        """
        deployment = await deployments.deploy(_request(who, model, body, idempotency_key))
        if isinstance(deployment, Pending):
            response.headers["Location"] = f"/api/control/approvals/{deployment.proposal.id}"
            return proposal(deployment, now_ns())
        return shown(deployments, deployment, detail=True)

    @routes.get("/deployments", summary="List deployments, newest first")
    async def deployments_(
        _: ModelsRead,
        module: str | None = None,
        state: DeploymentState | None = None,
        limit: Limit = 100,
        cursor: str | None = None,
    ) -> DeploymentsOut:
        """Active and ended deployments."""
        page, following = records.page(module=module, state=state, limit=limit, cursor=cursor)
        return DeploymentsOut(
            items=[shown(deployments, one, detail=False) for one in page], next_cursor=following
        )

    @routes.get("/deployments/{deployment_id}", summary="Show a deployment")
    async def one(_: ModelsRead, deployment_id: str) -> DeploymentOut:
        """Steps with each agent's answer, figures of the models, and rule results."""
        return shown(deployments, records.get(deployment_id), detail=True)

    return routes


def _request(who: Principal, model: str, body: DeployIn, idempotency_key: str) -> DeploymentRequest:
    return DeploymentRequest(
        model=model,
        stage=body.stage,
        by=who.user or MASTER.id,
        actor=who.id,
        permissions=who.permissions,
        module=body.module,
        share=body.share,
        agent_ids=tuple(body.agent_ids),
        form=body.form,
        rules=body.rules.model_dump(exclude_unset=True) if body.rules else None,
        promote=body.promote,
        reason=body.reason,
        key=idempotency_key,
        sha256=hashlib.sha256(
            f"{model}\n{body.model_dump_json(exclude_unset=True)}".encode()
        ).hexdigest(),
    )
