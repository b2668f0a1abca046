"""The two places for models at an agent: one decides, the other scores in its shadow."""

from dataclasses import dataclass

from mev.agent.clock import Clock
from mev.agent.model import Loaded
from mev.predict.seat import Seat
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.control_pb2 import PRODUCTION, SHADOW, ModelRole, ModelUse, SwapModel

_SHOWN = 12


@dataclass(slots=True)
class Place:
    """A seat; `unfit` counts opportunities that carry other features than models know, `failed` those that the seat could not count."""

    seat: Seat
    unfit: int = 0
    failed: int = 0
    broken: bool = False
    share: float = 1.0


class Seats:
    """Who sits where. A new model takes its place by one reference: whoever scores meanwhile goes on with the one it took."""

    def __init__(self, clock: Clock) -> None:
        self.production = Place(Seat(OPPORTUNITY, clock))
        self.shadow = Place(Seat(OPPORTUNITY, clock))

    def put(self, swap: SwapModel, loaded: Loaded | None) -> str:
        """Seat the model of `swap`, or nobody; return a line for the answer."""
        place = self._place(swap.role)
        if loaded is None:
            place.seat.put(None)
            return "no model"
        place.share = swap.share if swap.role == SHADOW else 1.0
        place.unfit, place.failed, place.broken = 0, 0, False
        place.seat.put(loaded.predictor, loaded.baseline)
        name = swap.model_id[:_SHOWN]
        return f"model {name} scores {swap.share:.3g} of the opportunities" if swap.role == SHADOW else f"model {name} decides"

    def holds(self, swap: SwapModel) -> bool:
        """Say whether the model of `swap` is in its place."""
        return self.model_id(swap.role) == swap.model_id

    def model_id(self, role: ModelRole) -> str:
        """Return which model is in that role; nothing when none is."""
        model = self._place(role).seat.model
        return model.model_id if model is not None else ""

    def uses(self) -> list[ModelUse]:
        """Return what each model did since it took its place, as reports say it."""
        return [use for role in (PRODUCTION, SHADOW) if (use := self._use(role)) is not None]

    def _place(self, role: ModelRole) -> Place:
        return self.shadow if role == SHADOW else self.production

    def _use(self, role: ModelRole) -> ModelUse | None:
        place = self._place(role)
        if (use := place.seat.use()) is None:
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
