"""Training loop: validation, early stopping, checkpoints, progress and cancellation."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import xgboost as xgb

from mev.core.files import write_atomically
from mev.jobs.errors import CancelledJobError
from mev.training.data import Export
from mev.training.spec import GOALS, Goal, TrainSpec

CHECKPOINT = "checkpoint.ubj"
_STATE = "mev_state"


class Report(Protocol):
    """Receiver of progress and source of cancellation; a job's context is one."""

    def progress(self, done: float, total: float, note: str = "", **figures: object) -> None:
        """Report that `done` of `total` is done."""

    def is_cancelled(self) -> bool:
        """Return whether the work was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A booster cut to its best rounds, with the validation by round and further `lineage`."""

    booster: xgb.Booster
    metric: str
    history: tuple[float, ...]
    best_round: int
    resumed_from: int | None
    lineage: Mapping[str, object] = field(default_factory=dict)


class Checkpoint:
    """A booster on disk, written atomically with its validation history inside."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key

    def save(self, booster: xgb.Booster, history: Sequence[float]) -> None:
        """Write a checkpoint, replacing the previous one."""
        booster.set_attr(**{_STATE: json.dumps({"key": self._key, "history": list(history)})})
        write_atomically(self._path, bytes(booster.save_raw("ubj")))
        booster.set_attr(**{_STATE: None})

    def load(self) -> tuple[xgb.Booster | None, list[float]]:
        """Return the stored checkpoint, or nothing when it is of another training."""
        if not self._path.exists():
            return None, []
        booster = xgb.Booster(model_file=str(self._path))
        state = json.loads(booster.attr(_STATE) or "{}")
        if state.get("key") != self._key:
            return None, []
        booster.set_attr(**{_STATE: None})
        return booster, list(state["history"])


class _Watch(xgb.callback.TrainingCallback):
    """Callback after every round.

    A resumed training stops where the original would have, because the checkpoint has the history.
    """

    def __init__(
        self,
        spec: TrainSpec,
        goal: Goal,
        checkpoint: Checkpoint,
        report: Report,
        history: list[float],
    ) -> None:
        super().__init__()
        self._spec, self._goal, self._checkpoint, self._report = spec, goal, checkpoint, report
        self._history = history
        self.cancelled = False

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: Any) -> bool:
        """Return whether that was the last round."""
        history, spec = self._history, self._spec
        history.append(float(evals_log["validation"][self._goal.metric][-1]))
        tell(self._report, spec, self._goal, history)
        self.cancelled = self._report.is_cancelled()
        if self.cancelled or (spec.checkpoint_every and len(history) % spec.checkpoint_every == 0):
            self._checkpoint.save(model, history)
        return self.cancelled or stalled(spec, self._goal, history)


def fit(
    spec: TrainSpec,
    params: dict[str, Any],
    train: xgb.QuantileDMatrix,
    validation: xgb.QuantileDMatrix,
    work: Path,
    key: str,
    report: Report,
) -> Fitted:
    """Train, resuming from the checkpoint in `work` if it has the same `key`.

    :raises CancelledJobError: when the job was cancelled; a checkpoint is left.
    """
    goal = GOALS[spec.objective]
    checkpoint = Checkpoint(work / CHECKPOINT, key)
    begun, history = checkpoint.load()
    resumed_from = len(history) or None
    watch = _Watch(spec, goal, checkpoint, report, history)
    booster = begun
    if begun is None or not (len(history) >= spec.rounds or stalled(spec, goal, history)):
        booster = xgb.train(
            learning(params, goal),
            train,
            spec.rounds - len(history),
            evals=[(validation, "validation")],
            verbose_eval=False,
            xgb_model=begun,
            callbacks=[watch],
        )
    if watch.cancelled or booster is None:
        raise CancelledJobError
    return fitted(spec, goal, booster, history, resumed_from)


def fitted(
    spec: TrainSpec,
    goal: Goal,
    booster: xgb.Booster,
    history: Sequence[float],
    resumed_from: int | None,
    lineage: Mapping[str, object] | None = None,
) -> Fitted:
    """Return the best rounds of `booster`, or all without early stopping."""
    best = goal.best_round(history) if spec.early_stopping_rounds else len(history)
    return Fitted(
        booster=booster[:best],
        metric=goal.metric,
        history=tuple(history),
        best_round=best,
        resumed_from=resumed_from,
        lineage=lineage or {},
    )


def learning(params: Mapping[str, Any], goal: Goal, metric: str | None = None) -> dict[str, Any]:
    """Return the XGBoost parameters for `goal`, validated by `metric`."""
    return {
        **params,
        **goal.params,
        "objective": goal.objective,
        "eval_metric": metric or goal.metric,
    }


def stalled(spec: TrainSpec, goal: Goal, history: Sequence[float]) -> bool:
    """Return whether early stopping applies."""
    return (
        bool(spec.early_stopping_rounds)
        and len(history) - goal.best_round(history) >= spec.early_stopping_rounds
    )


def tell(
    report: Report, spec: TrainSpec, goal: Goal, history: Sequence[float], where: str = ""
) -> None:
    """Report the progress of a training."""
    done, best = len(history), goal.best_round(history)
    figures = {
        goal.metric: round(history[-1], 6),
        "best": round(history[best - 1], 6),
        "best_round": best,
    }
    report.progress(done, spec.rounds, f"round {done} of {spec.rounds}{where}", **figures)


def key_of(spec: TrainSpec, export: Export, device: str) -> str:
    """Return the key of a training: the same rows, request and device have the same key."""
    return hashlib.sha256(
        f"{export.manifest_sha256} {device} {xgb.__version__} {spec.model_dump_json()}".encode()
    ).hexdigest()
