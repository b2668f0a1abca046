"""Scoring with a model of 300 trees, and training one, against XGBoost."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.harness import Clock, Row, RowFigures, RowInput, Sides, SkippedError, rate
from mev.scoring.compiled import CompiledModel
from mev.scoring.native_engine import NativeEngine, open_model
from mev.scoring.numpy_engine import NumpyEngine
from mev.scoring.predictor import Scorer

_FEATURES, _TREES, _DEPTH = 40, 300, 6
_ROWS = 65_536
_LEARNED = 200_000
_LEARNED_TREES = 50
_CALLS = 2_000


@contextmanager
def _score(_: RowInput, *, batch: int, scorer: Callable[[Any], Scorer]) -> Iterator[Sides]:
    """Ours: one form; the baseline: XGBoost in place, on one thread."""
    model = booster()
    model.set_param({"nthread": 1})
    ours = scorer(model)
    rows = table(_ROWS, 2)
    batches = [rows[start : start + batch] for start in range(0, _ROWS - batch + 1, batch)]
    baseline_times: list[float] = []
    our_times: list[float] = []

    def side(predict: Callable[[Any], object], times: list[float]) -> float:
        given = cycle(batches)
        calls = max(1, min(_CALLS, _ROWS // batch))

        def work() -> None:
            for _ in range(calls):
                rows = next(given)
                started = time.perf_counter()
                predict(rows)
                times.append(time.perf_counter() - started)

        return rate(work, calls * batch, clock=Clock.CPU)

    def notes(_: RowFigures) -> Sequence[str]:
        return [
            f"{name}: p50 {p50:.1f} us, p99 {p99:.1f} us a call"
            for name, (p50, p99) in _percentiles(ours=our_times, xgboost=baseline_times)
        ]

    predict = partial(model.inplace_predict, missing=np.nan)
    yield Sides(lambda: side(predict, baseline_times), lambda: side(ours.predict, our_times), notes)


@contextmanager
def _train(setting: RowInput) -> Iterator[Sides]:
    """Train both on one matrix and one thread; waiting threads would measure other load."""
    xgb = _xgboost()
    from mev.training.fit import fit  # noqa: PLC0415 - needs the extra
    from mev.training.spec import parse  # noqa: PLC0415 - as above

    cut = _LEARNED * 4 // 5
    rows, wanted = table(_LEARNED, 3), target(_LEARNED, 3)
    matrix = xgb.QuantileDMatrix(rows[:cut], wanted[:cut])
    validation = xgb.QuantileDMatrix(rows[cut:], wanted[cut:], ref=matrix)
    params = {"max_depth": _DEPTH, "eta": 0.1, "nthread": 1}
    spec = parse({"rounds": _LEARNED_TREES, "early_stopping_rounds": 0})
    report = SimpleNamespace(progress=lambda *_, **__: None, is_cancelled=lambda: False)

    def baseline() -> None:
        full = params | {"objective": "binary:logistic", "eval_metric": "logloss"}
        xgb.train(
            full, matrix, _LEARNED_TREES, evals=[(validation, "validation")], verbose_eval=False
        )

    def ours() -> None:
        with tempfile.TemporaryDirectory(
            dir=setting.scratch
        ) as work:  # a checkpoint that is there would be gone on from
            fit(spec, params, matrix, validation, Path(work), "bench", report)

    yield Sides(
        lambda: rate(baseline, _LEARNED_TREES, clock=Clock.CPU),
        lambda: rate(ours, _LEARNED_TREES, clock=Clock.CPU),
    )


def _percentiles(**times: list[float]) -> list[tuple[str, Any]]:
    return [(name, np.percentile(values, (50, 99)) * 1e6) for name, values in times.items()]


def _xgboost() -> Any:
    try:
        import xgboost  # noqa: PLC0415 - an extra
    except ImportError:
        raise SkippedError("XGBoost is not installed: pip install mev[train]") from None
    return xgboost


def engine(booster: Any) -> NativeEngine | NumpyEngine:
    """Return the data-only form of `booster`."""
    from mev.registry.pack import pack  # noqa: PLC0415 - needs the extra

    return open_model(pack(booster))


def _numpy(booster: Any) -> NumpyEngine:
    from mev.registry.pack import pack  # noqa: PLC0415 - needs the extra

    return NumpyEngine(pack(booster))


def _native(booster: Any) -> CompiledModel:
    from mev.registry.compile import compile_model  # noqa: PLC0415 - needs the extra
    from mev.registry.errors import CompilerMissingError  # noqa: PLC0415

    model_id = hashlib.sha256(booster.save_raw("ubj")).hexdigest()
    try:
        content = compile_model(booster, model_id)
    except CompilerMissingError as error:
        raise SkippedError(error.detail) from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.so")
        path.write_bytes(content)
        return CompiledModel(path, width=_FEATURES, model_id=model_id)


def booster() -> Any:
    """Return the model that is scored with.

    :raises SkippedError: when XGBoost is not installed.
    """
    xgb = _xgboost()
    matrix = xgb.QuantileDMatrix(table(_LEARNED, 1), target(_LEARNED, 1))
    return xgb.train({"objective": "binary:logistic", "max_depth": _DEPTH}, matrix, _TREES)


def table(rows: int, seed: int) -> Any:
    """Return rows of which some numbers are missing, the same at every call."""
    draw = np.random.default_rng(seed)
    made = draw.standard_normal((rows, _FEATURES), np.float32)
    made[draw.random(made.shape) < 0.05] = np.nan
    return made


def target(rows: int, seed: int) -> Any:
    """Return what is learned of them."""
    known = np.nan_to_num(table(rows, seed))
    noise = np.random.default_rng(seed + 100).standard_normal(rows)
    return (known[:, 0] * known[:, 1] + known[:, 2] + noise > 0).astype(np.float32)


def _row(
    name: str,
    form: str,
    batch: int,
    scorer: Callable[[Any], Scorer],
    expected_ratio: float | None = None,
) -> Row:
    return Row(
        name=name,
        unit="rows/s",
        ours=f"{form} of a model of {_TREES} trees, {batch} rows a call",
        baseline="XGBoost's inplace_predict on one thread, the same rows",
        clock=Clock.CPU,
        open=partial(_score, batch=batch, scorer=scorer),
        expected_ratio=expected_ratio,
    )


ROWS = (
    _row("score_1", "the data-only form", 1, engine, 10.0),
    _row("score_256", "the data-only form", 256, engine, 2.0),
    _row("score_compiled_1", "the compiled form", 1, _native),
    _row("score_compiled_256", "the compiled form", 256, _native),
    _row("score_numpy_1", "the data-only form in NumPy", 1, _numpy),
    _row("score_numpy_256", "the data-only form in NumPy", 256, _numpy),
    Row(
        name="train",
        unit="trees/s",
        ours=f"{_LEARNED_TREES} trees on one thread with progress and checkpoints",
        baseline="xgboost.train on the same matrix, validated the same",
        clock=Clock.CPU,
        open=_train,
        expected_ratio=0.91,
    ),
)
