"""A seat scores with the model that was put last, says which, and counts what it did."""

import itertools
import logging

import numpy as np
import pytest

from mev.scoring.active_model import ActiveModel, ScoredBatch, Use
from mev.scoring.drift import Baseline
from mev.scoring.errors import WrongRowsError, WrongSchemaError
from mev.scoring.mevt import TreeObjective
from mev.scoring.native_engine import NativeEngine, open_model
from mev.scoring.numpy_engine import NumpyEngine
from mev.scoring.predictor import Latency, Predictor, Rows, Scorer, Scores
from mev.wire.features import OPPORTUNITY
from tests.unit.scoring.samples import model, rows

ALL = OPPORTUNITY.names
TABLE = rows(np.random.default_rng(1), 300, len(ALL))


def engine(
    seed: int, width: int = len(ALL), objective: TreeObjective = TreeObjective.LOGISTIC
) -> NativeEngine | NumpyEngine:
    return open_model(model(5, width, objective, seed))


def predictor(scorer: Scorer, name: str = "first", features: tuple[str, ...] = ALL) -> Predictor:
    return Predictor(scorer, model_id=name, digest=f"{name}-file", features=features)


def active_model() -> ActiveModel:
    return ActiveModel(OPPORTUNITY, itertools.count(100).__next__)


def scored(active_model: ActiveModel, table: Rows = TABLE) -> ScoredBatch:
    found = active_model.score(table)
    assert found is not None
    return found


def used(active_model: ActiveModel) -> Use:
    found = active_model.use()
    assert found is not None
    return found


def test_an_empty_seat_scores_nothing() -> None:
    empty = active_model()
    assert (empty.model, empty.score(TABLE), empty.use()) == (None, None, None)


def test_the_model_that_was_put_last_scores_and_is_named() -> None:
    place = active_model()
    for number, name in enumerate(("first", "second")):
        placed = predictor(engine(number), name)
        place.put(placed)
        assert place.model is placed
        assert scored(place).model_id == name
        np.testing.assert_array_equal(scored(place).scores, engine(number).predict(TABLE))
    place.put(None)
    assert (place.model, place.score(TABLE), place.use()) == (None, None, None)


def test_a_model_gets_its_own_features_in_its_own_order() -> None:
    chosen = (ALL[7], ALL[0], ALL[4])
    place = active_model()
    place.put(predictor(engine(1, 3), features=chosen))
    np.testing.assert_array_equal(scored(place).scores, engine(1, 3).predict(TABLE[:, [7, 0, 4]]))
    np.testing.assert_array_equal(
        scored(place, np.asfortranarray(TABLE)).scores, engine(1, 3).predict(TABLE[:, [7, 0, 4]])
    )


def test_a_model_or_a_baseline_of_other_features_is_not_put() -> None:
    place = active_model()
    place.put(predictor(engine(1)))
    with pytest.raises(WrongSchemaError, match="luck"):
        place.put(predictor(engine(1, 2), features=("rivals", "luck")))
    with pytest.raises(WrongSchemaError, match="baseline"):
        place.put(predictor(engine(1)), Baseline.of(TABLE[:, :2], TABLE[:, 0], ALL[:2]))
    assert scored(place).model_id == "first"


@pytest.mark.parametrize("wrong", [TABLE[:, 1:], TABLE.astype(np.float64), TABLE[0]])
def test_rows_that_do_not_fit_the_schema_are_the_fault_of_who_asks(wrong: Rows) -> None:
    place = active_model()
    place.put(predictor(engine(1)))
    with pytest.raises(WrongRowsError):
        place.score(wrong)
    use = used(place)
    assert (use.scored, use.failed) == (0, 0)


def test_counting_begins_again_with_every_model() -> None:
    place = active_model()
    placed = predictor(engine(1))
    place.put(placed)
    first = used(place)
    assert (first.model_id, first.digest, first.since_ns) == ("first", "first-file", 100)
    assert (first.scored, first.failed, first.mean_score, first.latency) == (
        0,
        0,
        0,
        Latency(calls=0, p50_us=0, p99_us=0),
    )
    scores = [scored(place, TABLE[:size]).scores for size in (1, 0, 250)]
    use = used(place)
    assert (use.scored, use.failed, use.latency.calls) == (251, 0, 3)
    assert use.mean_score == pytest.approx(np.concatenate(scores).mean(dtype=np.float64))
    assert 0 < use.latency.p50_us <= use.latency.p99_us
    place.put(placed)
    again = used(place)
    assert (again.since_ns, again.scored, again.latency.calls) == (101, 0, 0)


class Broken:
    """Raises for every other batch."""

    width = len(ALL)

    def __init__(self) -> None:
        self._calls = 0

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        self._calls += 1
        if self._calls % 2:
            raise MemoryError
        return np.full(len(rows), 0.5, np.float32)


def test_what_a_model_raises_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    place = active_model()
    place.put(predictor(Broken()), Baseline.of(TABLE, TABLE[:, 0], ALL))
    with caplog.at_level(logging.ERROR):
        batches = [scored(place).scores for _ in range(4)]
    assert [bool(np.isnan(batch).all()) for batch in batches] == [True, False, True, False]
    assert {batch.dtype for batch in batches} == {np.dtype(np.float32)}
    use = used(place)
    assert (use.scored, use.failed, use.mean_score) == (600, 600, 0.5)
    assert [record.getMessage() for record in caplog.records] == ["model first does not score"]


class Overflowing:
    """Gives its first feature as score."""

    width = len(ALL)

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        return rows[:, 0].copy()


def test_a_score_that_is_no_finite_number_is_none() -> None:
    table = np.zeros((5, len(ALL)), np.float32)
    table[:, 0] = (1, np.inf, -np.inf, np.nan, 2)
    place = active_model()
    place.put(predictor(Overflowing()))
    np.testing.assert_array_equal(
        scored(place, table).scores, np.array([1, np.nan, np.nan, np.nan, 2], np.float32)
    )
    use = used(place)
    assert (use.scored, use.failed, use.mean_score) == (2, 3, 1.5)


@pytest.mark.parametrize("features", [ALL, (ALL[7], ALL[0])])
def test_drift_is_that_of_the_models_own_features_and_of_the_scores(
    features: tuple[str, ...],
) -> None:
    draw, columns = np.random.default_rng(2), [ALL.index(name) for name in features]
    held_back = rows(draw, 5000, len(ALL))
    live = rows(draw, 1000, len(ALL))
    live[:, 0] += 3
    place, placed = (
        active_model(),
        predictor(engine(1, len(features), TreeObjective.SQUARED_ERROR), features=features),
    )
    place.put(
        placed, Baseline.of(held_back[:, columns], placed.predict(held_back[:, columns]), features)
    )
    scored(place, live[:499])
    early = used(place)
    assert (early.score_psi, early.feature_psi) == (None, {})
    scored(place, live[499:])
    use = used(place)
    assert use.score_psi is not None
    assert tuple(use.feature_psi) == features
    assert {name for name, index in use.feature_psi.items() if index > 0.1} == {ALL[0]}


def test_without_a_baseline_nothing_is_said_of_drift() -> None:
    place = active_model()
    place.put(predictor(engine(1)))
    for _ in range(3):
        scored(place)
    use = used(place)
    assert (use.scored, use.score_psi, use.feature_psi) == (900, None, {})
