"""The two model roles of an agent: production decides, shadow only scores."""

from dataclasses import dataclass

from mev.agent.model_source import Loaded
from mev.core.clock import Clock
from mev.scoring.active_model import ActiveModel
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW, ModelRole, ModelUse, SwapModel

_SHOWN = 12


@dataclass(slots=True)
class ModelInRole:
    """The model in one role and its counters.

    `unfit` counts opportunities whose features do not match the model's schema, `failed` scoring
    errors that the model itself cannot count.
    """

    active_model: ActiveModel
    unfit: int = 0
    failed: int = 0
    broken: bool = False
    share: float = 1.0


class ActiveModels:
    """The models in production and shadow.

    A new model replaces the old one by a single reference: scoring in progress continues with the
    model it started with.
    """

    def __init__(self, clock: Clock) -> None:
        self.production = ModelInRole(ActiveModel(OPPORTUNITY, clock))
        self.shadow = ModelInRole(ActiveModel(OPPORTUNITY, clock))

    def put(self, swap: SwapModel, loaded: Loaded | None) -> str:
        """Activate the model of `swap`, or none; return a line for the answer."""
        place = self._place(swap.role)
        if loaded is None:
            place.active_model.put(None)
            return "no model"
        place.share = swap.share if swap.role == SHADOW else 1.0
        place.unfit, place.failed, place.broken = 0, 0, False
        place.active_model.put(loaded.predictor, loaded.baseline)
        name = swap.model_id[:_SHOWN]
        return (
            f"model {name} scores {swap.share:.3g} of the opportunities"
            if swap.role == SHADOW
            else f"model {name} decides"
        )

    def holds(self, swap: SwapModel) -> bool:
        """Return whether the model of `swap` is active."""
        return self.model_id(swap.role) == swap.model_id

    def model_id(self, role: ModelRole) -> str:
        """Return the id of the model in the role, or an empty string."""
        model = self._place(role).active_model.model
        return model.model_id if model is not None else ""

    def uses(self) -> list[ModelUse]:
        """Return the counters of each model since its activation, for reports."""
        return [use for role in (PRODUCTION, SHADOW) if (use := self._use(role)) is not None]

    def _place(self, role: ModelRole) -> ModelInRole:
        return self.shadow if role == SHADOW else self.production

    def _use(self, role: ModelRole) -> ModelUse | None:
        place = self._place(role)
        if (use := place.active_model.use()) is None:
            return None
        return ModelUse(
            role=role,
            model_id=use.model_id,
            sha256=bytes.fromhex(use.digest),
            since_ns=use.since_ns,
            scored=use.scored,
            failed=use.failed + place.failed,
            unfit=place.unfit,
            latency_p50_us=use.latency.p50_us,
            latency_p99_us=use.latency.p99_us,
            mean_score=use.mean_score,
            score_psi=use.score_psi,
            feature_psi=use.feature_psi,
        )
