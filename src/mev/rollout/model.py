"""Data model of deployments."""

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW, Command, SwapModel, Target


class Stage(StrEnum):
    """Stage of a deployment."""

    SHADOW = "shadow"
    CANARY = "canary"
    PRODUCTION = "production"
    ROLLBACK = "rollback"


FORWARD = (Stage.SHADOW, Stage.CANARY, Stage.PRODUCTION)


class DeploymentState(StrEnum):
    """State of a deployment; the last four are final."""

    ROLLING_OUT = "rolling_out"
    """Some live agents do not have the model yet."""
    WATCHING = "watching"
    """All live agents have it; the rules do not pass yet."""
    READY = "ready"
    """The rules pass; the next stage needs a request."""
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"
    FAILED = "failed"

    @property
    def active(self) -> bool:
        """Return whether the deployment is still being watched."""
        return self in {
            DeploymentState.ROLLING_OUT,
            DeploymentState.WATCHING,
            DeploymentState.READY,
        }


class RuleVerdict(StrEnum):
    """Result of evaluating a rule."""

    HOLDS = "holds"
    WAITING = "waiting"
    BREACHED = "breached"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Promotion rules of a stage; a bound of None is off."""

    min_scored: int = 1000
    max_error_rate: float | None = 0.01
    max_latency_p99_us: float | None = 5000.0
    max_score_psi: float | None = 0.25
    max_feature_psi: float | None = None
    hold_s: float = 600.0
    ack_timeout_s: float = 60.0
    canary_min_age_s: float = 0.0
    """Minimum time since enrolment for an agent to be chosen as a canary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleResult:
    """A rule with the measured value, its bound and the verdict."""

    rule: str
    value: float | None
    bound: float | None
    verdict: RuleVerdict
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model file that scores; `sha256` is hexadecimal, or empty where unknown."""

    model_id: str
    path: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """One command of a step.

    It places `artifact` in the shadow or production role, for `agent_ids` or else the whole module;
    without an artifact it clears the role. `command_id` is empty until the command is issued, and
    stays empty when another user's command took precedence.
    """

    shadow: bool
    artifact: Artifact | None
    share: float = 0.0
    agent_ids: tuple[str, ...] = ()
    command_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStep:
    """A change of stage.

    `by` issues its commands; `settled` is set once all due commands are issued and the aliases
    moved or due. The first order of a forward step places the model. `request_key` and
    `request_sha256` identify the request that caused the step.
    """

    stage: Stage
    at_ns: int
    by: str
    reason: str = ""
    skipped: tuple[Stage, ...] = ()
    early: bool = False
    """True if a person advanced before the rules of the previous stage passed."""
    orders: tuple[StepOrder, ...] = ()
    settled: bool = False
    aliases_due: bool = False
    """True while the aliases could not be moved, because the object store did not answer."""
    request_key: str = ""
    request_sha256: str = ""
    approvers: tuple[str, ...] = ()
    """Users who approved it, where approvals were required."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A staged rollout of a model to the agents of a module.

    `previous` is the model in production before; `base` the newest version of a model command known
    before the latest step; `agent_ids` are the canaries. `since_ns` is when it entered its state,
    `watched_ns` when all live agents first had the model in this stage, and `rows` the rule
    results when it was last written.
    """

    id: str
    module: str
    form: str
    artifact: Artifact
    previous: Artifact | None
    has_baseline: bool
    stage: Stage
    state: DeploymentState
    created_ns: int
    since_ns: int
    rules: Rules
    promote: bool
    agent_ids: tuple[str, ...] = ()
    base: tuple[int, int] = (0, 0)
    steps: tuple[DeploymentStep, ...] = ()
    watched_ns: int = 0
    because: str = ""
    """Reason for which it was rolled back, superseded or failed."""
    rows: tuple[RuleResult, ...] = ()
    returning: bool = False
    """True after the end while an agent may not have obeyed the rollback orders."""
    refused: tuple[str, ...] = ()
    """Agents that permanently refuse the rollback orders."""

    @property
    def finished(self) -> bool:
        """Return whether the deployment needs no further work."""
        return (
            not self.state.active
            and self.step.settled
            and not self.step.aliases_due
            and not self.returning
        )

    @property
    def step(self) -> DeploymentStep:
        """Return the latest step."""
        return self.steps[-1]

    def request_sha256(self, step: int, order: int) -> bytes:
        """Return the digest that identifies an order's command, also when issued again."""
        return hashlib.sha256(f"deployment\n{self.id}\n{step}\n{order}".encode()).digest()

    def command(self, step: int, number: int) -> Command:
        """Return the command draft of an order; deterministic, so issuing is idempotent."""
        order = self.steps[step].orders[number]
        swap = SwapModel(role=SHADOW if order.shadow else PRODUCTION, share=order.share)
        if order.artifact is not None:
            swap.model_id, swap.model_path, swap.version = (
                order.artifact.model_id,
                order.artifact.path,
                order.artifact.version,
            )
            swap.sha256 = bytes.fromhex(order.artifact.sha256)
        target = (
            Target(agent_ids=order.agent_ids) if order.agent_ids else Target(modules=[self.module])
        )
        draft = Command(model=swap, target=target, priority=5)
        draft.issuer.principal = self.steps[step].by
        draft.issuer.approvers.extend(self.steps[step].approvers)
        draft.idempotency_key = f"deployment:{self.id}:{step}:{number}"
        draft.request_sha256 = self.request_sha256(step, number)
        return draft

    def with_step(self, step: DeploymentStep) -> "Deployment":
        """Return a copy with another latest step."""
        return replace(self, steps=(*self.steps[:-1], step))

    def with_order(self, number: int, order: StepOrder) -> "Deployment":
        """Return a copy with another order at that index of its latest step."""
        orders = tuple(order if n == number else one for n, one in enumerate(self.step.orders))
        return self.with_step(replace(self.step, orders=orders))


def audit_details(deployment: Deployment, stage: Stage, reason: str) -> dict[str, object]:
    """Return the details of an audit record about a deployment."""
    return {
        "deployment": deployment.id,
        "module": deployment.module,
        "stage": stage.value,
        "reason": reason,
    }
