"""``/api/training``: deploying models, and what became of it."""

import hashlib
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Header, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mev.auth.dependencies import ModelsDeploy, ModelsRead
from mev.auth.model import MASTER, Principal
from mev.core.text import check_printable
from mev.deploy.admission import DEFAULT_SHARE, Request
from mev.deploy.model import Stage, State
from mev.deploy.service import Deployments
from mev.deploy.views import DeploymentOut, DeploymentsOut, shown

PATH = "/api/training"
IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", max_length=128)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class RulesIn(BaseModel):
    """What a stage must show before the next. What is not given stays as it was; null turns a bound off."""

    model_config = ConfigDict(extra="forbid")

    min_scored: Count = Field(1000, description="Opportunities the model has scored, at all agents together.")
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = Field(0.01, description="Opportunities it could not score, of all.")
    max_latency_p99_us: Bound | None = Field(5000.0, description="99th percentile of a call, at the slowest agent.")
    max_score_psi: Bound | None = Field(0.25, description="Drift of its scores against training, at the worst agent.")
    max_feature_psi: Bound | None = Field(None, description="Drift of the worst feature; off unless given.")
    hold_s: Annotated[float, Field(ge=0, le=2_592_000)] = Field(600.0, description="How long all living agents must have had it.")
    ack_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = Field(60.0, description="How long a living agent may leave it unanswered.")
    canary_min_age_s: Annotated[float, Field(ge=0, le=2_592_000)] = Field(0.0, description="How long a canary must have been enrolled.")


class DeployIn(BaseModel):
    """A stage for a model."""

    model_config = ConfigDict(extra="forbid")

    stage: Stage
    module: Name | None = Field(None, description="Agents' module; may be left out where there is one.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        DEFAULT_SHARE, description="shadow: of the opportunities, those that both score; canary: of the living agents, one at least."
    )
    agent_ids: Annotated[list[Name], Field(max_length=1000)] = Field([], description="canary: these, in the place of a share.")
    form: Literal["mevt", "so"] | None = Field(None, description="Data only where there is such a form, unless it is said.")
    rules: RulesIn | None = None
    promote: bool = Field(False, description="Go on to the next stage by itself as soon as the rules hold.")
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

    @routes.post("/models/{model}/deploy", status_code=202, summary="Deploy a model, bring it to another stage, or take it back")
    async def deploy(who: ModelsDeploy, model: str, body: DeployIn, idempotency_key: IdempotencyKey = "") -> DeploymentOut:
        """By its id or an alias. What decides at most agents needs control:raise beside, and control:lower when it is taken back.

        `GET /deployments/{id}` says what came of it.
        """
        deployment = await deployments.deploy(_request(who, model, body, idempotency_key))
        return shown(deployments, deployment, detail=True)

    @routes.get("/deployments", summary="List deployments, newest first")
    async def deployments_(
        _: ModelsRead, module: str | None = None, state: State | None = None, limit: Limit = 100, cursor: str | None = None
    ) -> DeploymentsOut:
        """Under way and ended."""
        page, following = records.page(module=module, state=state, limit=limit, cursor=cursor)
        return DeploymentsOut(items=[shown(deployments, one, detail=False) for one in page], next_cursor=following)

    @routes.get("/deployments/{deployment_id}", summary="Show a deployment")
    async def one(_: ModelsRead, deployment_id: str) -> DeploymentOut:
        """Its steps with each agent's answer, what the agents report of the models, and what the rules say of that."""
        return shown(deployments, records.get(deployment_id), detail=True)

    return routes


def _request(who: Principal, model: str, body: DeployIn, idempotency_key: str) -> Request:
    return Request(
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
        sha256=hashlib.sha256(f"{model}\n{body.model_dump_json(exclude_unset=True)}".encode()).hexdigest(),
    )
