"""Scoring against ONNX Runtime: the same trees as a graph of one node and the logistic function."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import orjson

from bench.harness import Clock, Row, RowFigures, RowInput, Sides, SkippedError, rate
from bench.rows import predict

_ROWS = 65_536
_CALLS = 2_000
_SAME = 2e-6
_OPSET, _ML_OPSET, _IR = 21, 3, 10


@contextmanager
def _score(_: RowInput, *, batch: int) -> Iterator[Sides]:
    """Ours: the data-only form; the baseline: ONNX Runtime on one thread; compared first."""
    session = _session(booster := predict.booster())
    ours = predict.engine(booster)
    table = predict.table(_ROWS, 2)
    worst = float(np.abs(ours.predict(table) - session(table)).max())
    if not worst <= _SAME:
        raise SkippedError(f"the graph is not the model: scores differ by {worst:.3g}")
    batches = [table[start : start + batch] for start in range(0, _ROWS - batch + 1, batch)]
    times: dict[str, list[float]] = {"ours": [], "onnxruntime": []}

    def side(name: str, predict: Callable[[Any], object]) -> float:
        given = cycle(batches)
        calls = max(1, min(_CALLS, _ROWS // batch))

        def work() -> None:
            for _ in range(calls):
                rows = next(given)
                started = time.perf_counter()
                predict(rows)
                times[name].append(time.perf_counter() - started)

        return rate(work, calls * batch, clock=Clock.CPU)

    def notes(_: RowFigures) -> Sequence[str]:
        found = {name: np.percentile(values, (50, 99)) * 1e6 for name, values in times.items()}
        lines = [
            f"{name}: p50 {p50:.1f} us, p99 {p99:.1f} us a call"
            for name, (p50, p99) in found.items()
        ]
        return [*lines, f"{_ROWS} rows: scores differ by {worst:.2g} at most"]

    yield Sides(lambda: side("onnxruntime", session), lambda: side("ours", ours.predict), notes)


def _session(booster: Any) -> Callable[[Any], Any]:
    try:
        import onnxruntime  # noqa: PLC0415 - of the development group
    except ImportError:
        raise SkippedError("ONNX Runtime is not installed: pip install onnx onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph(booster), options, providers=["CPUExecutionProvider"]
    )
    return lambda rows: session.run(None, {"rows": rows})[0][:, 0]


def graph(booster: Any) -> bytes:
    """Return the ONNX model of a binary:logistic `booster` with splits by number."""
    from onnx import TensorProto, helper  # noqa: PLC0415 - as above

    learner = orjson.loads(bytes(booster.save_raw("json")))["learner"]
    shape = learner["learner_model_param"]
    base = float(shape["base_score"].strip("[]"))
    attributes: dict[str, Any] = _attributes(learner["gradient_booster"]["model"]["trees"]) | {
        "n_targets": 1,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
        "base_values": [float(np.log(base / (1 - base)))],
    }
    nodes = [
        helper.make_node(
            "TreeEnsembleRegressor", ["rows"], ["margin"], domain="ai.onnx.ml", **attributes
        ),
        helper.make_node("Sigmoid", ["margin"], ["score"]),
    ]
    rows = helper.make_tensor_value_info(
        "rows", TensorProto.FLOAT, [None, int(shape["num_feature"])]
    )
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    model = helper.make_model(
        helper.make_graph(nodes, "trees", [rows], [score]), opset_imports=opsets, ir_version=_IR
    )
    return bytes(model.SerializeToString())


def _attributes(trees: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = (
        "treeids",
        "nodeids",
        "featureids",
        "values",
        "modes",
        "truenodeids",
        "falsenodeids",
        "missing_value_tracks_true",
    )
    nodes: dict[str, list[Any]] = {f"nodes_{name}": [] for name in names}
    leaves: dict[str, list[Any]] = {
        f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")
    }
    for number, tree in enumerate(trees):
        count = len(tree["left_children"])
        inner = [left >= 0 for left in tree["left_children"]]
        columns: tuple[Iterable[Any], ...] = (
            [number] * count,
            range(count),
            [
                feature if split else 0
                for feature, split in zip(tree["split_indices"], inner, strict=True)
            ],
            [
                value if split else 0.0
                for value, split in zip(tree["split_conditions"], inner, strict=True)
            ],
            ["BRANCH_LT" if split else "LEAF" for split in inner],
            [max(left, 0) for left in tree["left_children"]],
            [max(right, 0) for right in tree["right_children"]],
            [
                int(bool(left and split))
                for left, split in zip(tree["default_left"], inner, strict=True)
            ],
        )
        for name, column in zip(names, columns, strict=True):
            nodes[f"nodes_{name}"] += column
        ends = [place for place, split in enumerate(inner) if not split]
        weights = [tree["split_conditions"][place] for place in ends]
        for name, found in zip(
            leaves, ([number] * len(ends), ends, [0] * len(ends), weights), strict=True
        ):
            leaves[name] += found
    return nodes | leaves


ROWS = tuple(
    Row(
        name=f"score_onnx_{batch}",
        unit="rows/s",
        ours=f"the data-only form of a model of 300 trees, {batch} rows a call",
        baseline="ONNX Runtime on one thread, the same trees and rows",
        clock=Clock.CPU,
        open=partial(_score, batch=batch),
        expected_ratio=1.0,
    )
    for batch in (1, 256)
)
