"""Tests of the NumPy engine against the native one: same refusals, bit-identical scores."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.core import native
from mev.scoring.errors import MalformedModelError, WrongRowsError
from mev.scoring.mevt import TreeObjective
from mev.scoring.native_engine import NativeEngine
from mev.scoring.numpy_engine import NumpyEngine
from mev.scoring.predictor import Rows
from tests.services import require
from tests.unit.scoring.samples import model, rows

if not native.is_used():
    require(native.describe())
GOOD = model()


def refusal(kind: type[NativeEngine | NumpyEngine], data: bytes) -> str | None:
    """Return why an engine refuses `data`, None when it takes it."""
    try:
        kind(data)
    except MalformedModelError as error:
        return error.detail
    return None


def assert_same(data: bytes) -> None:
    """Check that both engines refuse `data` alike, or score alike."""
    reason = refusal(NativeEngine, data)
    assert refusal(NumpyEngine, data) == reason
    if reason is not None:
        return
    compiled, plain = NativeEngine(data), NumpyEngine(data)
    if compiled.width < 1000:
        table = rows(np.random.default_rng(11), 40, compiled.width)
        for margin in (False, True):
            found = plain.predict(table, margin=margin)
            np.testing.assert_array_equal(found, compiled.predict(table, margin=margin))


@pytest.mark.parametrize("objective", list(TreeObjective))
@pytest.mark.parametrize("count", [0, 1, 33, 5000])
def test_scores_equal_those_of_native_engine(objective: TreeObjective, count: int) -> None:
    data = model(60, 7, objective, seed=count)
    table = rows(np.random.default_rng(count), count, 7)
    compiled, plain = NativeEngine(data), NumpyEngine(data)
    assert (plain.objective, plain.width, plain.trees, plain.nodes) == (
        compiled.objective,
        compiled.width,
        compiled.trees,
        compiled.nodes,
    )
    np.testing.assert_array_equal(plain.predict(table), compiled.predict(table))


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_alike(data: bytes) -> None:
    assert_same(data)


@given(st.data())
def test_changed_models_are_refused_or_scored_alike(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[place] = data.draw(st.integers(0, 255))
    assert_same(bytes(raw))


@given(
    objective=st.sampled_from([1, 2]),
    base=st.floats(width=32),
    roots=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    nodes=st.lists(
        st.tuples(
            st.floats(width=32), st.integers(0, 9), st.sampled_from([0, 1, 3, 4, 2**31, 2**31 + 1])
        ),
        min_size=1,
        max_size=9,
    ),
)
def test_any_graph_of_nodes_is_refused_or_scored_alike(
    objective: int, base: float, roots: list[int], nodes: list[tuple[float, int, int]]
) -> None:
    head = struct.pack("<4sIIIIIfI", b"MEVT", 1, objective, 4, len(roots), len(nodes), base, 0)
    table = b"".join(struct.pack("<fII", *node) for node in nodes)
    assert_same(head + struct.pack(f"<{len(roots)}I", *roots) + table)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_sums_and_probabilities_of_any_leaves_are_equal(leaves: list[float]) -> None:
    head = struct.pack("<4sIIIIIfI", b"MEVT", 1, 1, 1, len(leaves), len(leaves), 0.25, 0)
    roots = struct.pack(f"<{len(leaves)}I", *range(len(leaves)))
    data = head + roots + b"".join(struct.pack("<fII", leaf, 0, 0) for leaf in leaves)
    assert_same(data)


@pytest.mark.parametrize("wrong", [np.zeros((2, 3), np.float32), np.zeros((2, 4))])
def test_rows_that_do_not_fit_are_refused(wrong: Rows) -> None:
    with pytest.raises(WrongRowsError):
        NumpyEngine(GOOD).predict(wrong)
