"""Deployments as plain values."""

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW, Command, SwapModel, Target


class Stage(StrEnum):
    """Who gets the model, and what it does there."""

    SHADOW = "shadow"
    CANARY = "canary"
    PRODUCTION = "production"
    ROLLBACK = "rollback"


FORWARD = (Stage.SHADOW, Stage.CANARY, Stage.PRODUCTION)


class State(StrEnum):
    """Where a deployment is; the last four are ends."""

    ROLLING_OUT = "rolling_out"
    """Not every living agent has the model."""
    WATCHING = "watching"
    """They have it, and the rules do not hold yet."""
    READY = "ready"
    """The rules hold; it waits for a person."""
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"
    FAILED = "failed"

    @property
    def active(self) -> bool:
        """Whether it is watched."""
        return self in {State.ROLLING_OUT, State.WATCHING, State.READY}


class Verdict(StrEnum):
    """What became of a rule."""

    HOLDS = "holds"
    WAITING = "waiting"
    BREACHED = "breached"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a stage must show before the next; a bound of None is not looked at."""

    min_scored: int = 1000
    max_error_rate: float | None = 0.01
    max_latency_p99_us: float | None = 5000.0
    max_score_psi: float | None = 0.25
    max_feature_psi: float | None = None
    hold_s: float = 600.0
    ack_timeout_s: float = 60.0
    canary_min_age_s: float = 0.0
    """How long an agent must have been enrolled to be chosen as a canary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A rule, the value it was compared with, and how that ended."""

    rule: str
    value: float | None
    bound: float | None
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that scores; `sha256` in hexadecimal digits, empty where a person did not say."""

    model_id: str
    path: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One command of a step: `artifact` in the shadow or in production, for `agent_ids` or, without any, the module.

    Without an artifact the role is emptied. `command_id` is empty until the command is issued, and stays so where somebody else has
    ordered something meanwhile.
    """

    shadow: bool
    artifact: Artifact | None
    share: float = 0.0
    agent_ids: tuple[str, ...] = ()
    command_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A change of stage. `by` issues its commands; `settled` once all that are due are issued and the aliases have followed.

    The first order of a step forward places the model. `request_key` and `request_sha256` are of the request it came from.
    """

    stage: Stage
    at_ns: int
    by: str
    reason: str = ""
    skipped: tuple[Stage, ...] = ()
    early: bool = False
    """Whether a person went on before the rules of the stage before held."""
    orders: tuple[Order, ...] = ()
    settled: bool = False
    request_key: str = ""
    request_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model on its way to the agents of a module.

    `previous` is what decided in the module before; `base` the newest version of a model command known before the latest step;
    `agent_ids` are the canaries. `since_ns` is when it came into its state, `watched_ns` when all living agents first had the model in
    this stage, and `rows` what the rules said when it was last written.
    """

    id: str
    module: str
    form: str
    artifact: Artifact
    previous: Artifact | None
    has_baseline: bool
    stage: Stage
    state: State
    created_ns: int
    since_ns: int
    rules: Rules
    promote: bool
    agent_ids: tuple[str, ...] = ()
    base: tuple[int, int] = (0, 0)
    steps: tuple[Step, ...] = ()
    watched_ns: int = 0
    because: str = ""
    """Why it was rolled back, superseded or failed."""
    rows: tuple[Row, ...] = ()
    returning: bool = False
    """Whether it has ended, and an agent may not have obeyed the orders that took the model back."""
    refused: tuple[str, ...] = ()
    """The agents that refuse those for good."""

    @property
    def finished(self) -> bool:
        """Whether nobody has to look after it any more."""
        return not self.state.active and self.step.settled and not self.returning

    @property
    def step(self) -> Step:
        """The latest step."""
        return self.steps[-1]

    def request_sha256(self, step: int, order: int) -> bytes:
        """Return what marks the command of an order as ours, under whatever id and key it is issued again."""
        return hashlib.sha256(f"deployment\n{self.id}\n{step}\n{order}".encode()).digest()

    def command(self, step: int, number: int) -> Command:
        """Return the draft of an order. It never changes: issued twice, it is one command."""
        order = self.steps[step].orders[number]
        swap = SwapModel(role=SHADOW if order.shadow else PRODUCTION, share=order.share)
        if order.artifact is not None:
            swap.model_id, swap.model_path, swap.version = order.artifact.model_id, order.artifact.path, order.artifact.version
            swap.sha256 = bytes.fromhex(order.artifact.sha256)
        target = Target(agent_ids=order.agent_ids) if order.agent_ids else Target(modules=[self.module])
        draft = Command(model=swap, target=target, priority=5)
        draft.issuer.principal = self.steps[step].by
        draft.idempotency_key = f"deployment:{self.id}:{step}:{number}"
        draft.request_sha256 = self.request_sha256(step, number)
        return draft

    def with_step(self, step: Step) -> "Deployment":
        """Return the deployment with another latest step."""
        return replace(self, steps=(*self.steps[:-1], step))

    def with_order(self, number: int, order: Order) -> "Deployment":
        """Return the deployment with another order in that place of its latest step."""
        orders = tuple(order if n == number else one for n, one in enumerate(self.step.orders))
        return self.with_step(replace(self.step, orders=orders))
