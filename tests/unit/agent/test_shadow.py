"""Tests of the reported shadow scores, and when there are none."""

import asyncio
import math

import numpy as np
import pytest

from mev.agent import shadow as shadow_module
from mev.agent.active_models import ActiveModels
from mev.agent.model_source import Loaded
from mev.agent.scoring import score
from mev.agent.shadow import Shadow
from mev.scoring.predictor import Predictor, Rows, Scores
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.control_pb2 import SHADOW, SwapModel
from mev.wire.pb.events_pb2 import Score
from mev.wire.registry import KafkaRecord
from tests.services.waits import until_async
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


def put(active_models: ActiveModels, model_id: str, *, fails: bool = False) -> None:
    predictor = Predictor(
        Constant(fails=fails), model_id=model_id, digest="", features=OPPORTUNITY.names
    )
    active_models.put(
        SwapModel(model_id=model_id, role=SHADOW, share=1.0), Loaded(predictor=predictor)
    )


async def test_a_model_that_fails_has_no_number_and_one_that_has_left_is_not_spoken_of() -> None:
    active_models, published = ActiveModels(Clock()), asyncio.Queue[list[KafkaRecord]]()

    async def publish(_topic: str, records: list[KafkaRecord]) -> None:
        published.put_nowait(records)

    async def said() -> list[tuple[str, bool]]:
        async with asyncio.timeout(10):
            scores = [Score.FromString(record["value"]) for record in await published.get()]
        return [(one.shadow_model_id, math.isnan(one.shadow_score)) for one in scores]

    shadow = Shadow("a1", active_models.shadow, publish, Clock())
    decided = score(active_models.production, opportunities(2))
    running = asyncio.create_task(shadow.run())
    put(active_models, "failing", fails=True)
    shadow.offer(decided)
    assert await said() == [("failing", True)] * 2
    shadow.offer(decided)
    active_models.put(SwapModel(role=SHADOW), None)  # before it is scored
    await asyncio.sleep(0)
    put(active_models, "next")
    shadow.offer(decided)
    assert await said() == [("next", False)] * 2
    running.cancel()


async def test_a_burst_of_small_batches_is_scored_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    active_models, published = ActiveModels(Clock()), list[str]()
    put(active_models, "shadow")

    async def publish(_topic: str, records: list[KafkaRecord]) -> None:
        published.extend(Score.FromString(record["value"]).opportunity_id for record in records)

    async def scored(batches: int, expected: int) -> list[str]:
        published.clear()
        shadow = Shadow("a1", active_models.shadow, publish, Clock())
        for number in range(batches):
            batch = opportunities(2)
            for one in batch:
                one.id = f"{number}-{one.id}"
            shadow.offer(score(active_models.production, batch))
        running = asyncio.create_task(shadow.run())
        await until_async(lambda: len(published), lambda count: count >= expected)
        running.cancel()
        return published

    assert len(await scored(200, 400)) == 400
    monkeypatch.setattr(shadow_module, "_MOST_WAITING", 10)
    assert {name.split("-")[0] for name in await scored(20, 10)} == {"15", "16", "17", "18", "19"}
