"""What is said of the model in the shadow, and when nothing is."""

import asyncio
import math

import numpy as np

from mev.agent.model import Loaded
from mev.agent.scoring import score
from mev.agent.seats import Seats
from mev.agent.shadow import Shadow
from mev.predict.predictor import Predictor, Rows, Scores
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.control_pb2 import SHADOW, SwapModel
from mev.wire.pb.events_pb2 import Score
from mev.wire.registry import Record
from tests.unit.agent.models import opportunities
from tests.unit.agent.plane import Clock


class Constant:
    """A model that says 0.5 of everything, or fails."""

    def __init__(self, *, fails: bool) -> None:
        self.width = len(OPPORTUNITY.names)
        self._fails = fails

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        if self._fails:
            raise ZeroDivisionError
        return np.full(len(rows), 0.5, np.float32)


def put(seats: Seats, model_id: str, *, fails: bool = False) -> None:
    predictor = Predictor(Constant(fails=fails), model_id=model_id, digest="", features=OPPORTUNITY.names)
    seats.put(SwapModel(model_id=model_id, role=SHADOW, share=1.0), Loaded(predictor=predictor))


async def test_a_model_that_fails_has_no_number_and_one_that_has_left_is_not_spoken_of() -> None:
    seats, published = Seats(Clock()), asyncio.Queue[list[Record]]()

    async def publish(_topic: str, records: list[Record]) -> None:
        published.put_nowait(records)

    async def said() -> list[tuple[str, bool]]:
        async with asyncio.timeout(10):
            scores = [Score.FromString(record["value"]) for record in await published.get()]
        return [(one.shadow_model_id, math.isnan(one.shadow_score)) for one in scores]

    shadow = Shadow("a1", seats.shadow, publish, Clock())
    decided = score(seats.production, opportunities(2))
    running = asyncio.create_task(shadow.run())
    put(seats, "failing", fails=True)
    shadow.offer(decided)
    assert await said() == [("failing", True)] * 2
    shadow.offer(decided)
    seats.put(SwapModel(role=SHADOW), None)  # before it is scored
    await asyncio.sleep(0)
    put(seats, "next")
    shadow.offer(decided)
    assert await said() == [("next", False)] * 2
    running.cancel()
