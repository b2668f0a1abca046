"""Cost of the active model around scoring, and pauses of scoring while a model is swapped."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Clock, Row, RowFigures, RowInput, Sides, SkippedError, rate
from mev.core.clock import now_ns
from mev.crypto.keys import SigningKey
from mev.crypto.trust import COMMAND, TrustStore
from mev.scoring.active_model import ActiveModel
from mev.scoring.drift import Baseline, Drift
from mev.scoring.load import load, read_manifest
from mev.scoring.native_engine import NativeEngine, open_model
from mev.scoring.numpy_engine import NumpyEngine
from mev.scoring.predictor import Predictor
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.envelope_pb2 import KeySet

_TREES, _DEPTH = 300, 6
_LEARNED = 50_000
_FROZEN = 2_000
_ROWS = 65_536
_SWAPS, _SWAPS_COMPILED = 20, 5  # in one round
_AFTER_S = 0.01
_KEY = SigningKey("bench", bytes([1]) * 32)
_TRUST = TrustStore(KeySet(epoch=1, keys=[_KEY.trusted_for(COMMAND)]))


@contextmanager
def _added(_: RowInput, *, batch: int) -> Iterator[Sides]:
    """Ours: through a seat, with counters and drift; the baseline: the model itself."""
    engine = _engine()
    predictor = Predictor(engine, model_id="bench", digest="bench", features=OPPORTUNITY.names)
    held_back = _table(_FROZEN, 3)
    baseline = Baseline.of(held_back, engine.predict(held_back), OPPORTUNITY.names)
    active_model, drift = ActiveModel(OPPORTUNITY, now_ns), Drift(baseline)
    active_model.put(predictor, baseline)
    scores = engine.predict(held_back)[:batch]
    batches = _batches(batch)
    calls = min(2_000, len(batches))

    def side(score: Callable[[Any], object]) -> float:
        given = cycle(batches)

        def work() -> None:
            for _ in range(calls):
                score(next(given))

        return rate(work, calls * batch, clock=Clock.CPU)

    def notes(figures: RowFigures) -> list[str]:
        watched, scored = (
            side(lambda rows: drift.add(rows, scores)),
            statistics.median(figures.baseline),
        )
        return [
            (
                f"drift alone: {batch / watched * 1e6:.1f} us a call, {scored / watched:.1%} of"
                " what scoring takes"
            )
        ]

    yield Sides(lambda: side(predictor.predict), lambda: side(active_model.score), notes)


@contextmanager
def _pause(setting: RowInput, *, compiled: bool) -> Iterator[Sides]:
    """Measure windows in which a model is loaded and swapped, against windows without a swap."""
    model_id, path = _registered(setting.scratch, compiled=compiled)
    active_model = ActiveModel(OPPORTUNITY, now_ns)

    def swap() -> None:
        manifest = read_manifest(path.parent, model_id, _TRUST)
        active_model.put(load(path, manifest), manifest.baseline)

    swap()
    windows = _Windows(active_model, swap, _SWAPS_COMPILED if compiled else _SWAPS)
    yield Sides(windows.quiet, windows.swapping, windows.notes)


class _Windows:
    """Windows of single-row calls; a round's rate is 1 / median of the windows' worst calls."""

    def __init__(self, active_model: ActiveModel, swap: Callable[[], None], number: int) -> None:
        self._active_model = active_model
        self._swap = swap
        self._number = number
        self._batches = cycle(_batches(1))
        self._window_s = 0.05
        self._quiet: list[list[float]] = []
        self._swapping: list[list[float]] = []

    def quiet(self) -> float:
        """Run a round of windows in which nothing happens."""
        windows = [
            self._calls_until(time.perf_counter() + self._window_s) for _ in range(self._number)
        ]
        self._quiet += windows
        return _rate(windows)

    def swapping(self) -> float:
        """Run a round of windows with a swap in each."""
        windows, started = [], time.perf_counter()
        for _ in range(self._number):
            thread = threading.Thread(target=self._swap)
            thread.start()
            windows.append(
                self._calls_until(None, thread) + self._calls_until(time.perf_counter() + _AFTER_S)
            )
        self._window_s = (time.perf_counter() - started) / self._number
        self._swapping += windows
        return _rate(windows)

    def notes(self, _: RowFigures) -> list[str]:
        """Return the percentiles of all calls, and the worst of the windows."""
        return [
            f"windows of {self._window_s * 1000:.0f} ms",
            _said("with a swap", self._swapping),
            _said("without", self._quiet),
        ]

    def _calls_until(
        self, end: float | None, thread: threading.Thread | None = None
    ) -> list[float]:
        times, score, batches = [], self._active_model.score, self._batches
        while True:
            started = time.perf_counter()
            score(next(batches))
            ended = time.perf_counter()
            times.append(ended - started)
            if (end is not None and ended >= end) or (thread is not None and not thread.is_alive()):
                return times


def _rate(windows: list[list[float]]) -> float:
    return 1 / statistics.median(max(times) for times in windows)


def _said(what: str, windows: list[list[float]]) -> str:
    p50, p99 = np.percentile(np.concatenate(windows), (50, 99)) * 1e6
    worst = [max(times) * 1e6 for times in windows]
    return (
        f"{what}: {len(windows)} windows, p50 {p50:.1f} us, p99 {p99:.1f} us a call; the worst call"
        f" of a window {statistics.median(worst):.0f} us in the median, {max(worst):.0f} us at most"
    )


def _registered(scratch: Path, *, compiled: bool) -> tuple[str, Path]:
    booster = _booster()
    from mev.registry.errors import CompilerMissingError  # noqa: PLC0415 - needs the extra
    from mev.registry.register import Trained  # noqa: PLC0415
    from mev.registry.registry import Registry  # noqa: PLC0415
    from tests.services.models import register  # noqa: PLC0415

    trained = Trained(
        booster=booster,
        features=OPPORTUNITY.names,
        schema=OPPORTUNITY,
        frozen_rows=_table(_FROZEN, 3),
        metrics={},
        lineage={},
    )
    try:
        manifest = register(
            Registry(scratch / "models", _TRUST), trained, _KEY, compiled=compiled
        ).manifest
    except CompilerMissingError as error:
        raise SkippedError(error.detail) from None
    form = "so" if compiled else "mevt"
    return manifest.model_id, scratch / "models" / f"{manifest.digest(form)}.{form}"


def _engine() -> NativeEngine | NumpyEngine:
    booster = _booster()
    from mev.registry.pack import pack  # noqa: PLC0415 - needs the extra

    return open_model(pack(booster))


def _booster() -> Any:
    try:
        import xgboost as xgb  # noqa: PLC0415 - an extra
    except ImportError:
        raise SkippedError("XGBoost is not installed: pip install mev[train]") from None
    table = _table(_LEARNED, 1)
    known = np.nan_to_num(table)
    noise = np.random.default_rng(100).standard_normal(_LEARNED)
    target = (known[:, 0] * known[:, 1] + known[:, 2] + noise > 0).astype(np.float32)
    return xgb.train(
        {"objective": "binary:logistic", "max_depth": _DEPTH, "nthread": 1},
        xgb.QuantileDMatrix(table, target, nthread=1),
        _TREES,
    )


def _batches(batch: int) -> list[Any]:
    table = _table(_ROWS, 2)
    return [table[start : start + batch] for start in range(0, _ROWS - batch + 1, batch)]


def _table(rows: int, seed: int) -> Any:
    draw = np.random.default_rng(seed)
    table = draw.standard_normal((rows, len(OPPORTUNITY.names)), np.float32)
    table[draw.random(table.shape) < 0.05] = np.nan
    return table


def _seat_row(batch: int, expected: float) -> Row:
    return Row(
        name=f"seat_{batch}",
        unit="rows/s",
        ours=(
            f"a model of {_TREES} trees through its seat, counted and watched for drift, {batch}"
            " rows a call"
        ),
        baseline="the model itself, the same rows",
        clock=Clock.CPU,
        open=partial(_added, batch=batch),
        expected_ratio=expected,
    )


def _swap_row(name: str, form: str, *, compiled: bool) -> Row:
    return Row(
        name=name,
        unit="1/worst s",
        ours=(
            f"one row a call while a {form} model of {_TREES} trees is loaded and swapped in: 1 /"
            " the worst call"
        ),
        baseline="the same in windows of the same length without a swap",
        clock=Clock.WALL,
        open=partial(_pause, compiled=compiled),
    )


ROWS = (
    _seat_row(1, 0.5),
    _seat_row(256, 0.75),
    _swap_row("swap_pause", "data-only", compiled=False),
    _swap_row("swap_pause_compiled", "compiled", compiled=True),
)
