"""Loading beside the event loop: bounded in time and number, the newest wins, what hangs hurts nobody else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mev.agent.judge import Prepared, Wanted
from mev.agent.model import Loaded, ModelFolder
from mev.agent.preparation import Preparations
from mev.core.errors import MevError
from mev.crypto.trust import COMMAND, TrustStore
from mev.predict.predictor import Predictor, Rows, Scores
from mev.wire.pb.control_pb2 import SHADOW, SwapModel
from mev.wire.pb.envelope_pb2 import Envelope, KeySet
from tests.unit.agent.models import Gate, Shelf
from tests.unit.agent.plane import Clock, Plane

CLOCK = Clock()
PLANE = Plane(CLOCK)
TRUST = TrustStore(KeySet(epoch=1, keys=[PLANE.key.trusted_for(COMMAND)]))


class Desk:
    """What became of what was begun."""

    def __init__(self, gate: Gate) -> None:
        self.done: list[Prepared] = []
        self.refused: list[tuple[Wanted, str]] = []
        self.gate = gate
        self.preparations = self.made()

    def made(self, longest_s: float = 30.0) -> Preparations:
        return Preparations(self.gate, self.done.append, self._refuse, CLOCK, longest_s=longest_s)

    def begin(self, swap: SwapModel, *, in_snapshot: bool = False) -> Wanted:
        wanted = Wanted(PLANE.command(swap), CLOCK(), Envelope(), in_snapshot)
        self.preparations.begin(wanted, TRUST)
        return wanted

    async def outcome(self, wanted: Wanted) -> Loaded | MevError:
        await until(lambda: any(one.wanted is wanted for one in self.done))
        return next(one.outcome for one in self.done if one.wanted is wanted)

    def _refuse(self, wanted: Wanted, error: MevError) -> None:
        self.refused.append((wanted, error.code))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - threads
            await asyncio.sleep(0.002)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path, PLANE.key)


@pytest.fixture
async def desk(shelf: Shelf) -> AsyncIterator[Desk]:
    made = Desk(Gate(ModelFolder(shelf.folder)))
    yield made
    made.preparations.close()


def code(outcome: Loaded | MevError) -> str:
    return outcome.code if isinstance(outcome, MevError) else ""


async def test_what_takes_too_long_is_given_up(desk: Desk, shelf: Shelf) -> None:
    desk.preparations = desk.made(longest_s=0.05)
    model = shelf.add(1)
    opened = desk.gate.shut(model)
    assert code(await desk.outcome(desk.begin(model))) == "model_load_timeout"
    opened.set()


async def test_hanging_loads_are_bounded_and_those_that_end_make_room(desk: Desk, shelf: Shelf) -> None:
    models = [shelf.add(seed) for seed in range(6)]
    gates = [desk.gate.shut(model) for model in models[:5]]
    started = [desk.begin(model) for model in models]
    await until(lambda: len(desk.gate.loads) == 1)  # overtaken before they began
    assert [wanted for wanted, _ in desk.refused] == started[:5]
    assert code(await desk.outcome(started[-1])) == ""
    for model in models[:4]:
        desk.begin(model)
        await until(lambda model=model: model.model_id in desk.gate.loads)  # type: ignore[misc]
    waits = desk.begin(models[4])
    other = desk.begin(shelf.add(9, SHADOW))
    for _ in range(20):
        await asyncio.sleep(0)
    assert models[4].model_id not in desk.gate.loads
    for gate in gates:
        gate.set()
    assert code(await desk.outcome(waits)) == code(await desk.outcome(other)) == ""
    assert {wrong for _, wrong in desk.refused} == {"rolled_back"}


async def test_the_same_swap_again_and_an_older_one_are_not_begun(desk: Desk, shelf: Shelf) -> None:
    older, newer = (PLANE.command(shelf.add(seed)) for seed in (1, 2))
    opened = desk.gate.shut(newer.model)
    wanted = Wanted(newer, CLOCK(), Envelope())
    for _ in range(3):
        desk.preparations.begin(wanted, TRUST)
    late = Wanted(older, CLOCK(), Envelope())
    desk.preparations.begin(late, TRUST)
    desk.preparations.begin(Wanted(older, CLOCK(), Envelope(), in_snapshot=True), TRUST)
    assert desk.refused == [(late, "rolled_back")]
    opened.set()
    assert code(await desk.outcome(wanted)) == ""
    assert desk.gate.loads == [newer.model.model_id]


async def test_what_was_refused_a_moment_ago_is_refused_again_without_loading(desk: Desk, shelf: Shelf) -> None:
    model = shelf.add(1, feature_schema="opportunity.v0")
    wanted = desk.begin(model)
    assert code(await desk.outcome(wanted)) == "wrong_feature_schema"
    desk.preparations.begin(wanted, TRUST)
    desk.preparations.begin(Wanted(wanted.command, CLOCK(), Envelope(), in_snapshot=True), TRUST)
    assert desk.refused == [(wanted, "wrong_feature_schema")]
    assert len(desk.gate.loads) == 1


class Own:
    """A source of somebody's own, which brings what it was given for whatever is asked."""

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
    desk: Desk, shelf: Shelf, fields: dict[str, Any] | None, expected: str
) -> None:
    swap = shelf.add(1)
    given = {"model_id": swap.model_id, "digest": "00" * 32, "features": ("rivals",)}
    desk.gate.source = Own(None if fields is None else Predictor(Half(), **given | fields))
    assert code(await desk.outcome(desk.begin(swap))) == expected
