"""Tests of background loading: bounded in time and number, newest first, isolated hangs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mev.agent.command_verifier import Prepared, Wanted
from mev.agent.model_loader import ModelLoader
from mev.agent.model_source import Loaded, ModelFolder
from mev.core.errors import MevError
from mev.crypto.trust import MODEL, TrustStore
from mev.scoring.predictor import Predictor, Rows, Scores
from mev.wire.pb.control_pb2 import SHADOW, SwapModel
from mev.wire.pb.envelope_pb2 import Envelope, KeySet
from tests.services.waits import until_async
from tests.unit.agent.models import Gate, Shelf
from tests.unit.agent.plane import Clock, Plane

CLOCK = Clock()
PLANE = Plane(CLOCK)
TRUST = TrustStore(KeySet(epoch=1, keys=[PLANE.model_key.trusted_for(MODEL)]))


class Desk:
    """Recorder of load results."""

    def __init__(self, gate: Gate) -> None:
        self.done: list[Prepared] = []
        self.refused: list[tuple[Wanted, str]] = []
        self.gate = gate
        self.model_loader = self.made()

    def made(self, longest_s: float = 30.0) -> ModelLoader:
        return ModelLoader(self.gate, self.done.append, self._refuse, CLOCK, longest_s=longest_s)

    def begin(self, swap: SwapModel, *, in_snapshot: bool = False) -> Wanted:
        wanted = Wanted(PLANE.command(swap), CLOCK(), Envelope(), in_snapshot)
        self.model_loader.begin(wanted, TRUST)
        return wanted

    async def outcome(self, wanted: Wanted) -> Loaded | MevError:
        await until_async(lambda: any(one.wanted is wanted for one in self.done))
        return next(one.outcome for one in self.done if one.wanted is wanted)

    def _refuse(self, wanted: Wanted, error: MevError) -> None:
        self.refused.append((wanted, error.code))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path, PLANE.model_key)


@pytest.fixture
async def context(shelf: Shelf) -> AsyncIterator[Desk]:
    made = Desk(Gate(ModelFolder(shelf.folder)))
    yield made
    made.model_loader.close()


def code(outcome: Loaded | MevError) -> str:
    return outcome.code if isinstance(outcome, MevError) else ""


async def test_what_takes_too_long_is_given_up(context: Desk, shelf: Shelf) -> None:
    context.model_loader = context.made(longest_s=0.05)
    model = shelf.add(1)
    opened = context.gate.shut(model)
    assert code(await context.outcome(context.begin(model))) == "model_load_timeout"
    opened.set()


async def test_hanging_loads_are_bounded_and_those_that_end_make_room(
    context: Desk, shelf: Shelf
) -> None:
    models = [shelf.add(seed) for seed in range(6)]
    gates = [context.gate.shut(model) for model in models[:5]]
    started = [context.begin(model) for model in models]
    await until_async(lambda: len(context.gate.loads) == 1)  # overtaken before they began
    assert [wanted for wanted, _ in context.refused] == started[:5]
    assert code(await context.outcome(started[-1])) == ""
    for model in models[:4]:
        context.begin(model)
        wanted = model.model_id
        await until_async(lambda wanted=wanted: wanted in context.gate.loads)  # type: ignore[misc]
    waits = context.begin(models[4])
    other = context.begin(shelf.add(9, SHADOW))
    for _ in range(20):
        await asyncio.sleep(0)
    assert models[4].model_id not in context.gate.loads
    for gate in gates:
        gate.set()
    assert code(await context.outcome(waits)) == code(await context.outcome(other)) == ""
    assert {wrong for _, wrong in context.refused} == {"rolled_back"}


async def test_the_same_swap_again_and_an_older_one_are_not_begun(
    context: Desk, shelf: Shelf
) -> None:
    older, newer = (PLANE.command(shelf.add(seed)) for seed in (1, 2))
    opened = context.gate.shut(newer.model)
    wanted = Wanted(newer, CLOCK(), Envelope())
    for _ in range(3):
        context.model_loader.begin(wanted, TRUST)
    late = Wanted(older, CLOCK(), Envelope())
    context.model_loader.begin(late, TRUST)
    context.model_loader.begin(Wanted(older, CLOCK(), Envelope(), in_snapshot=True), TRUST)
    assert context.refused == [(late, "rolled_back")]
    opened.set()
    assert code(await context.outcome(wanted)) == ""
    assert context.gate.loads == [newer.model.model_id]


async def test_what_was_refused_a_moment_ago_is_refused_again_without_loading(
    context: Desk, shelf: Shelf
) -> None:
    model = shelf.add(1, feature_schema="opportunity.v0")
    wanted = context.begin(model)
    assert code(await context.outcome(wanted)) == "wrong_feature_schema"
    context.model_loader.begin(wanted, TRUST)
    context.model_loader.begin(Wanted(wanted.command, CLOCK(), Envelope(), in_snapshot=True), TRUST)
    assert context.refused == [(wanted, "wrong_feature_schema")]
    assert len(context.gate.loads) == 1


class Own:
    """Custom model source that returns a fixed model for every request."""

    def __init__(self, predictor: Predictor | None) -> None:
        self._predictor = predictor

    def load(self, swap: SwapModel, trust: TrustStore, at_ns: int) -> Loaded:
        if self._predictor is None:
            raise ZeroDivisionError
        return Loaded(predictor=self._predictor)


class Half:
    """A model in a form of its own."""

    width = 1

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        return np.full(len(rows), 0.5, np.float32)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"model_id": "another"}, "bad_manifest"),
        ({"features": ("luck",)}, "wrong_feature_schema"),
        ({"digest": "no digest"}, "failed"),
        (None, "failed"),
    ],
)
async def test_what_a_source_of_somebodys_own_brings_is_checked(
    context: Desk, shelf: Shelf, fields: dict[str, Any] | None, expected: str
) -> None:
    swap = shelf.add(1)
    given = {"model_id": swap.model_id, "digest": "00" * 32, "features": ("rivals",)}
    context.gate.source = Own(None if fields is None else Predictor(Half(), **given | fields))
    assert code(await context.outcome(context.begin(swap))) == expected
