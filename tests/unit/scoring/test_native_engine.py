"""Both engines against a walk in plain Python, and against bytes that are no model."""

import gc
import math
import struct
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.core import native
from mev.scoring import native_engine
from mev.scoring.errors import MalformedModelError, WrongRowsError
from mev.scoring.mevt import DecisionTree, TreeObjective, encode
from mev.scoring.native_engine import NativeEngine, open_model
from mev.scoring.numpy_engine import NumpyEngine
from mev.scoring.predictor import Predictor, Rows
from tests.unit.scoring.samples import model, rows, tree

pytestmark = pytest.mark.usefixtures("native_or_python")
HEADER, NODE = 32, 12


def walk(trees: list[DecisionTree], row: Rows, base: float) -> np.float32:
    """Return the sum of the leaves, in float32."""
    total = np.float32(base)
    for one in trees:
        node = 0
        while one.left[node] >= 0:
            x = row[one.feature[node]]
            goes_left = one.missing_left[node] if math.isnan(x) else x < one.value[node]
            node = one.left[node] if goes_left else one.right[node]
        total = np.float32(total + one.value[node])
    return total


GOOD = model()


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_those_of_a_plain_walk(seed: int) -> None:
    draw = np.random.default_rng(seed)
    features = int(draw.integers(1, 9))
    trees = [
        tree(draw, int(draw.integers(0, 7)), features) for _ in range(int(draw.integers(1, 20)))
    ]
    table = rows(draw, 71, features)
    expected = np.array([walk(trees, row, 1.5) for row in table], np.float32)
    loaded = open_model(encode(TreeObjective.SQUARED_ERROR, features, np.float32(1.5), trees))
    assert loaded.trees == len(trees)
    np.testing.assert_array_equal(loaded.predict(table), expected)


def test_a_probability_is_the_logistic_function_of_the_margin() -> None:
    draw = np.random.default_rng(3)
    loaded, table = open_model(GOOD), rows(draw, 500, 4)
    margins = loaded.predict(table, margin=True).astype(np.float64)
    np.testing.assert_allclose(loaded.predict(table), 1 / (1 + np.exp(-margins)), rtol=1e-6)


def test_a_value_at_its_threshold_goes_right_and_a_missing_one_its_own_way() -> None:
    def leaf(missing_left: bool) -> NativeEngine | NumpyEngine:
        numbers = np.array([0.5, -1, 1], np.float32)
        children = np.array([[1, -1, -1], [2, -1, -1]], np.int32)
        stump = DecisionTree(
            value=numbers,
            left=children[0],
            right=children[1],
            feature=np.zeros(3, np.int32),
            missing_left=np.array([missing_left, 0, 0]),
        )
        return open_model(encode(TreeObjective.SQUARED_ERROR, 1, np.float32(0), [stump]))

    table = np.array([[0.5], [np.nextafter(np.float32(0.5), np.float32(0))], [np.nan]], np.float32)
    assert leaf(missing_left=True).predict(table).tolist() == [1, -1, -1]
    assert leaf(missing_left=False).predict(table).tolist() == [1, -1, 1]


def test_rows_of_any_layout_and_number() -> None:
    loaded = open_model(GOOD)
    table = rows(np.random.default_rng(5), 100, 4)
    expected = loaded.predict(table)
    np.testing.assert_array_equal(loaded.predict(np.asfortranarray(table)), expected)
    np.testing.assert_array_equal(loaded.predict(table[::3]), expected[::3])
    assert loaded.predict(table[:0]).shape == (0,)
    np.testing.assert_array_equal(
        np.concatenate([loaded.predict(row[None]) for row in table]), expected
    )


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 5), np.float32),
        np.zeros(4, np.float32),
        np.zeros((2, 4)),
        [[0.0] * 4],
    ],
)
def test_rows_that_do_not_fit_are_refused(wrong: Rows) -> None:
    with pytest.raises(WrongRowsError):
        open_model(GOOD).predict(wrong)


def changed(offset: int, form: str, value: float) -> bytes:
    data = bytearray(GOOD)
    struct.pack_into(form, data, offset, value)
    return bytes(data)


NODES = HEADER + 4 * 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "shorter"),
        (GOOD[:31], "shorter"),
        (b"X" + GOOD[1:], "MEVT"),
        (changed(4, "<I", 2), "version"),
        (changed(8, "<I", 3), "objective"),
        (changed(12, "<I", 0), "header"),
        (changed(12, "<I", 1 << 31), "header"),
        (changed(16, "<I", 0), "header"),
        (changed(20, "<I", 2), "header"),
        (changed(28, "<I", 1), "header"),
        (changed(16, "<I", 4), "length"),
        (changed(20, "<I", 0xFFFFFFFF), "length"),
        (GOOD[:-1], "length"),
        (GOOD + b"\0", "length"),
        (changed(24, "<f", math.nan), "base score"),
        (changed(24, "<f", 1.0), "base score"),
        (changed(HEADER, "<I", 1), "tree"),
        (changed(HEADER + 4, "<I", 0), "tree"),
        (changed(HEADER + 8, "<I", 0xFFFFFFFF), "tree"),
        (changed(NODES, "<f", math.inf), "finite"),
        (changed(NODES + 4, "<I", 0xFFFFFFFF), "child"),
        (changed(len(GOOD) - NODE + 4, "<I", 1), "child"),
        (changed(NODES + 8, "<I", 4), "feature"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedModelError, match=reason):
        open_model(data)


def test_a_child_that_is_its_parent_or_belongs_to_another_tree_is_refused() -> None:
    second = struct.unpack_from("<I", GOOD, HEADER + 4)[0]
    for child in (second - 1, second):
        with pytest.raises(MalformedModelError, match="child"):
            open_model(changed(NODES + 4, "<I", child))
    inner = next(
        n for n in range(1, second) if struct.unpack_from("<I", GOOD, NODES + NODE * n + 4)[0]
    )
    with pytest.raises(MalformedModelError, match="child"):
        open_model(changed(NODES + NODE * inner + 4, "<I", inner))


def use(data: bytes) -> None:
    """Open and score: a refusal is an answer, a crash ends the tests."""
    try:
        loaded = open_model(data)
    except MalformedModelError:
        return
    if loaded.width < 1000:
        table = np.full((40, loaded.width), np.nan, np.float32)
        table[::2] = 0.5
        assert loaded.predict(table).shape == (40,)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_crash_nothing(data: bytes) -> None:
    use(data)


@given(st.data())
def test_changed_bytes_of_a_model_crash_nothing(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[place] = data.draw(st.integers(0, 255))
    use(bytes(raw))


@given(
    trees=st.integers(1, 5),
    nodes=st.lists(
        st.tuples(st.floats(width=32), st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=9
    ),
)
def test_any_graph_of_nodes_ends(trees: int, nodes: list[tuple[float, int, int]]) -> None:
    head = struct.pack("<4sIIIIIfI", b"MEVT", 1, 2, 4, trees, len(nodes), 0.0, 0)
    roots = struct.pack(f"<{trees}I", *range(trees))
    use(head + roots + b"".join(struct.pack("<fII", *node) for node in nodes))


def test_threads_share_a_model() -> None:
    loaded, table = open_model(model(50)), rows(np.random.default_rng(7), 2000, 4)
    expected = loaded.predict(table)
    wrong: list[int] = []

    def score() -> None:
        wrong.extend(
            step for step in range(20) if not np.array_equal(loaded.predict(table), expected)
        )

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_model_is_freed_with_its_last_reference() -> None:
    predict = open_model(GOOD).predict
    gc.collect()
    assert predict(np.zeros((1, 4), np.float32)).shape == (1,)


def test_numpy_scores_without_native_module_and_log_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEV_NATIVE", "0")
    native_engine._warn.cache_clear()
    assert isinstance(open_model(GOOD), NumpyEngine)
    assert isinstance(open_model(GOOD), NumpyEngine)
    (record,) = caplog.records
    assert record.getMessage().endswith(native.describe())


def test_the_clock_of_a_predictor() -> None:
    predictor = Predictor(open_model(GOOD), model_id="m", digest="d", features=("a", "b", "c", "d"))
    assert predictor.latency.calls == 0
    for _ in range(3):
        predictor.predict(np.zeros((1, 4), np.float32))
    assert predictor.latency.calls == 3
    assert 0 < predictor.latency.p50_us <= predictor.latency.p99_us
