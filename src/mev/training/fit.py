"""Growing trees, round by round: with validation, early stopping, checkpoints, progress and an end on request."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import xgboost as xgb

from mev.core.files import write_atomically
from mev.jobs.errors import CancelledJobError
from mev.training.data import Export, Mask, batches, numbers
from mev.training.spec import Objective, TrainSpec

CHECKPOINT = "checkpoint.ubj"
_STATE = "mev_state"
_OBJECTIVES = {Objective.BINARY: ("binary:logistic", "logloss"), Objective.REGRESSION: ("reg:squarederror", "rmse")}


class Report(Protocol):
    """Who is told how far it is, and knows whether it is still wanted; a job's context is one."""

    def progress(self, done: float, total: float, note: str = "", **figures: object) -> None:
        """Say that `done` of `total` is done."""

    def is_cancelled(self) -> bool:
        """Say whether the work is not wanted any longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A booster of its best rounds, and the validation by round."""

    booster: xgb.Booster
    metric: str
    history: tuple[float, ...]
    best_round: int
    resumed_from: int | None


class Rows(xgb.DataIter):
    """The rows of an export as XGBoost reads them, several times over."""

    def __init__(self, export: Export, features: Sequence[str], target: str, keep: Mask) -> None:
        super().__init__()
        self._given = (export, [*features, target], keep)
        self._features, self._target = list(features), target
        self._tables: Iterator[pa.Table] | None = None

    def next(self, input_data: Any) -> bool:
        """Hand over a batch, and say whether there was one."""
        if self._tables is None:
            self._tables = batches(*self._given)
        table = next(self._tables, None)
        if table is None:
            return False
        data = table.select(self._features).cast(pa.schema([(name, pa.float32()) for name in self._features]), safe=False)
        input_data(data=data, label=numbers(table, [self._target])[:, 0])
        return True

    def reset(self) -> None:
        """Begin again."""
        self._tables = None


class _Watch(xgb.callback.TrainingCallback):
    """What happens after every round. Its state travels inside the checkpoint, so that a resumed training stops where it would have."""

    def __init__(self, spec: TrainSpec, metric: str, key: str, checkpoint: Path, report: Report, history: list[float]) -> None:
        super().__init__()
        self._spec, self._metric, self._key, self._checkpoint, self._report = spec, metric, key, checkpoint, report
        self.history = history
        self.cancelled = False

    @property
    def best_round(self) -> int:
        """The round, from 1, after which the validation was best."""
        return min(range(len(self.history)), key=self.history.__getitem__) + 1

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: Any) -> bool:
        """Return whether that was the last round."""
        self.history.append(float(evals_log["validation"][self._metric][-1]))
        done, spec = len(self.history), self._spec
        figures = {self._metric: round(self.history[-1], 6), "best": round(min(self.history), 6), "best_round": self.best_round}
        self._report.progress(done, spec.rounds, f"round {done} of {spec.rounds}", **figures)
        self.cancelled = self._report.is_cancelled()
        if self.cancelled or (spec.checkpoint_every and done % spec.checkpoint_every == 0):
            self._save(model)
        stalled = bool(spec.early_stopping_rounds) and done - self.best_round >= spec.early_stopping_rounds
        return self.cancelled or stalled

    def _save(self, model: xgb.Booster) -> None:
        model.set_attr(**{_STATE: json.dumps({"key": self._key, "history": self.history})})
        write_atomically(self._checkpoint, bytes(model.save_raw("ubj")))
        model.set_attr(**{_STATE: None})


def fit(
    spec: TrainSpec,
    params: dict[str, Any],
    train: xgb.QuantileDMatrix,
    validation: xgb.QuantileDMatrix,
    work: Path,
    key: str,
    report: Report,
) -> Fitted:
    """Train, or go on from the checkpoint in `work` when it is of the same training, which `key` names.

    :raises CancelledJobError: when the report says so; a checkpoint is left.
    """
    objective, metric = _OBJECTIVES[spec.objective]
    checkpoint = work / CHECKPOINT
    begun, history = _resume(checkpoint, key)
    resumed_from = len(history) or None
    watch = _Watch(spec, metric, key, checkpoint, report, history)
    booster = begun
    if begun is None or not _ended(spec, watch):
        booster = xgb.train(
            params | {"objective": objective, "eval_metric": metric},
            train,
            spec.rounds - len(history),
            evals=[(validation, "validation")],
            verbose_eval=False,
            xgb_model=begun,
            callbacks=[watch],
        )
    if watch.cancelled or booster is None:
        raise CancelledJobError
    best = watch.best_round if spec.early_stopping_rounds else len(history)
    return Fitted(booster=booster[:best], metric=metric, history=tuple(history), best_round=best, resumed_from=resumed_from)


def key_of(spec: TrainSpec, export: Export, device: str) -> str:
    """Return what names a training: the same rows, the same request, the same device."""
    return hashlib.sha256(f"{export.manifest_sha256} {device} {xgb.__version__} {spec.model_dump_json()}".encode()).hexdigest()


def _ended(spec: TrainSpec, watch: _Watch) -> bool:
    done = len(watch.history)
    return done >= spec.rounds or (bool(spec.early_stopping_rounds) and done - watch.best_round >= spec.early_stopping_rounds)


def _resume(checkpoint: Path, key: str) -> tuple[xgb.Booster | None, list[float]]:
    if not checkpoint.exists():
        return None, []
    booster = xgb.Booster(model_file=str(checkpoint))
    state = json.loads(booster.attr(_STATE) or "{}")
    if state.get("key") != key:
        return None, []
    booster.set_attr(**{_STATE: None})
    return booster, list(state["history"])
