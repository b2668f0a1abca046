"""Tests of the drift index: near 0 for similar rows, large for others, always a number."""

import json
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mev.core.errors import InvalidInputError
from mev.scoring.drift import LEAST_ROWS, WINDOW_ROWS, Baseline, Drift
from mev.scoring.errors import BadManifestError
from mev.scoring.predictor import Rows, Scores

NAMES = ("a", "b", "c")
ANY_FLOAT = st.floats(width=32) | st.sampled_from(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4028234663852886e38]
)


def normal(count: int, seed: int, *, mean: float = 0, scale: float = 1) -> tuple[Rows, Scores]:
    draw = np.random.default_rng(seed)
    table = (mean + scale * draw.normal(size=(count, len(NAMES)))).astype(np.float32)
    table[draw.random(table.shape) < 0.05] = np.nan
    return table, draw.beta(2, 5, count).astype(np.float32)


def of(rows: Rows, scores: Scores) -> Baseline:
    return Baseline.of(rows, scores, NAMES)


def drift(baseline: Baseline, rows: Rows, scores: Scores) -> Drift:
    seen = Drift(baseline)
    seen.add(rows, scores)
    return seen


def all_of(seen: Drift) -> list[float]:
    scores = seen.scores()
    assert scores is not None
    assert tuple(seen.features()) == NAMES
    return [*seen.features().values(), scores]


@given(seed=st.integers(0, 10_000), mean=st.floats(-100, 100), scale=st.floats(1, 1000))
def test_the_same_distribution_is_near_0(seed: int, mean: float, scale: float) -> None:
    baseline = of(*normal(5000, seed, mean=mean, scale=scale))
    assert max(all_of(drift(baseline, *normal(4000, seed + 1, mean=mean, scale=scale)))) < 0.05


@given(seed=st.integers(0, 10_000), shift=st.floats(1, 100), up=st.booleans())
def test_a_shifted_distribution_is_far(seed: int, shift: float, up: bool) -> None:
    baseline = of(*normal(5000, seed))
    rows, scores = normal(2000, seed + 1, mean=shift if up else -shift)
    seen = drift(baseline, rows, 1 - scores)
    assert min(all_of(seen)) > 0.25


def test_only_what_drifts_is_said_to() -> None:
    rows, scores = normal(2000, 2)
    rows[:, 1] *= 3
    found = drift(of(*normal(5000, 1)), rows, scores).features()
    assert found["b"] > 0.25
    assert max(found["a"], found["c"]) < 0.05


@pytest.mark.parametrize("now", [0.0, 6.99, 7.01, 1e30, -1e30, np.inf, -np.inf, np.nan])
def test_a_constant_that_changes_is_found(now: float) -> None:
    rows, scores = normal(1000, 1)
    rows[:, 0] = 7
    baseline = of(rows, scores)
    assert drift(baseline, rows, scores).features()["a"] == pytest.approx(0, abs=1e-9)
    rows[:, 0] = now
    assert drift(baseline, rows, scores).features()["a"] > 1


def test_a_flag_that_is_set_more_often_is_found() -> None:
    rows, scores = normal(1000, 1)
    rows[:, 0] = np.arange(1000) % 4 == 0
    baseline = of(rows, scores)
    rows[:, 0] = np.arange(1000) % 4 != 0
    assert drift(baseline, rows, scores).features()["a"] > 0.25


def test_a_feature_that_is_no_longer_filled_in_is_found() -> None:
    baseline = of(*normal(5000, 1))
    rows, scores = normal(1000, 2)
    rows[::2, 2] = np.nan
    assert drift(baseline, rows, scores).features()["c"] > 0.25


@given(
    before=arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(4)), elements=ANY_FLOAT),
    after=arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(4)), elements=ANY_FLOAT),
)
def test_whatever_the_rows_the_index_is_a_number(before: Rows, after: Rows) -> None:
    baseline = of(before[:, :3], before[:, 3])
    assert Baseline.from_json(json.loads(json.dumps(baseline.to_json())), NAMES) == baseline
    many = np.tile(after, (1 + LEAST_ROWS // len(after), 1))
    found = np.array(all_of(drift(baseline, many[:, :3], many[:, 3])))
    assert np.isfinite(found).all()
    assert (found >= 0).all()


def test_any_pattern_of_bits_is_counted() -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, (4000, 4), np.uint32)
    bits[::7] = 0x7F800001  # a NaN that signals
    table = bits.view(np.float32)
    baseline = of(table[:, :3], table[:, 3])
    assert max(all_of(drift(baseline, table[:, :3], table[:, 3]))) == pytest.approx(0, abs=1e-9)


def test_nothing_is_said_before_500_rows() -> None:
    rows, scores = normal(LEAST_ROWS, 1)
    seen = drift(of(rows, scores), rows[1:], scores[1:])
    assert (seen.features(), seen.scores()) == ({}, None)
    seen.add(rows[:1], scores[:1])
    assert all_of(seen) == pytest.approx([0] * 4, abs=1e-9)


@given(st.lists(st.integers(0, 700), max_size=12))
def test_how_rows_are_cut_into_batches_changes_nothing(sizes: list[int]) -> None:
    rows, scores = normal(WINDOW_ROWS - 1, 3, mean=0.3)
    baseline = of(*normal(1000, 1))
    seen, start = Drift(baseline), 0
    for size in (*sizes, len(rows)):
        seen.add(rows[start : start + size], scores[start : start + size])
        start += size
    assert all_of(seen) == all_of(drift(baseline, rows, scores))


def test_old_rows_are_forgotten_after_two_windows() -> None:
    baseline = of(*normal(5000, 1))
    seen = drift(baseline, *normal(WINDOW_ROWS, 2, mean=5))
    seen.add(*normal(WINDOW_ROWS, 3))
    assert min(seen.features().values()) > 0.25
    seen.add(*normal(2 * WINDOW_ROWS, 4))
    assert max(all_of(seen)) < 0.05


def test_threads_add_while_others_ask() -> None:
    rows, scores = normal(2000, 2)
    seen = drift(of(*normal(5000, 1)), rows, scores)

    def add() -> None:
        for _ in range(500):
            seen.add(rows[:17], scores[:17])

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert np.isfinite(all_of(seen)).all()
    for thread in threads:
        thread.join()
    assert sum(seen._rows) <= 2000 + 3 * 500 * 17


def test_a_baseline_needs_rows_that_fit() -> None:
    rows, scores = normal(10, 1)
    for wrong in (
        (rows[:0], scores[:0], NAMES),
        (rows, scores[1:], NAMES),
        (rows, scores, NAMES[1:]),
    ):
        with pytest.raises(InvalidInputError):
            Baseline.of(*wrong)


GOOD: dict[str, Any] = of(*normal(1000, 1)).to_json()


def changed(**spread: Any) -> dict[str, Any]:
    return GOOD | {"scores": GOOD["scores"] | spread}


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "x",
        {},
        {"features": GOOD["features"]},
        GOOD | {"features": GOOD["features"][::-1]},
        GOOD | {"features": GOOD["features"][1:]},
        GOOD | {"features": [*GOOD["features"], GOOD["features"][2]]},
        GOOD | {"features": [1]},
        changed(edges=[2, 1], shares=[0.5, 0.25, 0.25], missing=0),
        changed(edges=[1, 1], shares=[0.5, 0.25, 0.25], missing=0),
        changed(edges=[float("nan")], shares=[0.5, 0.5], missing=0),
        changed(edges=[float("inf")], shares=[0.5, 0.5], missing=0),
        changed(edges=[1e39], shares=[0.5, 0.5], missing=0),
        changed(edges=[1], shares=[1], missing=0),
        changed(edges=[1], shares=[0.5, 0.6], missing=0),
        changed(edges=[1], shares=[1.5, -0.5], missing=0),
        changed(edges=[1], shares=[0.5, float("nan")], missing=0),
        changed(edges=[1], shares=[0.5, 0.5], missing=0.5),
        changed(edges=list(range(33)), shares=[1, *[0] * 33], missing=0),
        changed(edges="ab"),
        changed(missing=None),
    ],
)
def test_a_baseline_that_is_none_is_refused(content: Any) -> None:
    with pytest.raises(BadManifestError, match="baseline"):
        Baseline.from_json(content, NAMES)
    assert Baseline.from_json(GOOD, NAMES).to_json() == GOOD
