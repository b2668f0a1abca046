"""Hyperparameter search: trials on the training rows, judged by the validation rows.

Every finished trial is stored at once. An interrupted search repeats only the current trial and
then proposes the same trials as before: the sampler is seeded by the number of the trial, not by
earlier draws.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import xgboost as xgb

from mev.core.files import write_atomically
from mev.jobs.errors import CancelledJobError
from mev.training.errors import SearchUnavailableError
from mev.training.fit import Report, learning
from mev.training.spec import GOALS, Goal, Params, Search, TrainSpec, best_round

if TYPE_CHECKING:
    import optuna

TRIALS = "trials.json"
_PRUNE_AFTER_TRIALS = 5
_WIDE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A finished trial, or one ``pruned`` for being worse than the median of earlier ones."""

    number: int
    params: Mapping[str, float]
    value: float
    best_round: int
    pruned: bool
    seconds: float
    history: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Result of a search."""

    metric: str
    best: Trial
    trials: Sequence[Trial]

    def document(self) -> dict[str, object]:
        """Return the result as plain values, without the rounds of the trials."""
        trials = [
            {name: value for name, value in asdict(trial).items() if name != "history"}
            for trial in self.trials
        ]
        return {
            "metric": self.metric,
            "best_trial": self.best.number,
            "best_value": self.best.value,
            "params": dict(self.best.params),
            "validation_used_for_choosing": True,
            "trials": trials,
        }


def search(
    spec: TrainSpec,
    asked: Search,
    params: dict[str, Any],
    train: xgb.QuantileDMatrix,
    validation: xgb.QuantileDMatrix,
    work: Path,
    key: str,
    report: Report,
) -> SearchResult:
    """Search, resuming from the trials in `work` if they have the same `key`.

    :raises SearchUnavailableError: without Optuna.
    :raises CancelledJobError: when the job was cancelled; finished trials are stored.
    """
    goal = GOALS[spec.objective]
    metric = asked.metric or goal.metric
    study = _Study(
        asked, spec.seed, more_is_better=goal.metrics[metric], warm_up=max(1, spec.rounds // 10)
    )
    trials = _load(work / TRIALS, key)
    for trial in trials:
        study.add(trial)
    while len(trials) < asked.trials and (
        not trials or sum(trial.seconds for trial in trials) < asked.timeout_s
    ):
        trials.append(_try(study, spec, goal, metric, params, (train, validation), report, trials))
        _save(work / TRIALS, key, trials)
    return SearchResult(metric=metric, best=study.best(trials), trials=trials)


class _Study:
    """Adapter of Optuna: suggests parameters and prunes trials."""

    def __init__(self, asked: Search, seed: int, *, more_is_better: bool, warm_up: int) -> None:
        self._optuna = optuna = require()
        self._asked, self._seed = asked, seed
        self.more_is_better = more_is_better
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=_PRUNE_AFTER_TRIALS, n_warmup_steps=warm_up
        )
        self._study = optuna.create_study(
            direction="maximize" if more_is_better else "minimize", pruner=pruner
        )
        self._space = {
            name: self._distribution(name, *bounds) for name, bounds in asked.space.items()
        }

    def ask(self, number: int) -> Any:
        """Return trial `number`; its parameters depend only on earlier trials and the seed."""
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(self._seed * 1_000_003 + number) % 2**32
        )
        return self._study.ask(self._space)

    def tell(self, asked: "optuna.trial.Trial", value: float, *, pruned: bool) -> None:
        """Report the result of a trial."""
        states = self._optuna.trial.TrialState
        self._study.tell(
            asked, None if pruned else value, state=states.PRUNED if pruned else states.COMPLETE
        )

    def add(self, trial: Trial) -> None:
        """Add a trial of an earlier attempt."""
        states = self._optuna.trial.TrialState
        made = self._optuna.trial.create_trial(
            params=dict(trial.params),
            distributions=self._space,
            value=trial.history[-1] if trial.pruned else trial.value,
            state=states.PRUNED if trial.pruned else states.COMPLETE,
            intermediate_values=dict(enumerate(trial.history)),
        )
        self._study.add_trial(made)

    def best(self, trials: Sequence[Trial]) -> Trial:
        """Return the best trial that was not pruned; the first never is."""
        whole = [trial for trial in trials if not trial.pruned]
        return (max if self.more_is_better else min)(whole, key=lambda trial: trial.value)

    def _distribution(self, name: str, low: float, high: float) -> Any:
        if Params.model_fields[name].annotation is int:
            return self._optuna.distributions.IntDistribution(int(low), int(high))
        return self._optuna.distributions.FloatDistribution(
            low, high, log=low > 0 and high / low >= _WIDE
        )


class _Watch(xgb.callback.TrainingCallback):
    """Callback after every round of a trial."""

    def __init__(
        self,
        study: _Study,
        asked: "optuna.trial.Trial",
        spec: TrainSpec,
        metric: str,
        report: Report,
    ) -> None:
        super().__init__()
        self._study, self._asked, self._spec, self._metric, self._report = (
            study,
            asked,
            spec,
            metric,
            report,
        )
        self.history: list[float] = []
        self.pruned = False
        self.cancelled = False

    @property
    def best_round(self) -> int:
        return best_round(self.history, more_is_better=self._study.more_is_better)

    def after_iteration(self, model: xgb.Booster, epoch: int, evals_log: Any) -> bool:
        """Return whether that was the last round."""
        self.history.append(float(evals_log["validation"][self._metric][-1]))
        done, stop = len(self.history), self._spec.early_stopping_rounds
        self._asked.report(self.history[-1], done - 1)
        self.cancelled = self._report.is_cancelled()
        stalled = bool(stop) and done - self.best_round >= stop
        # converts numpy's bool
        self.pruned = bool(not stalled and done < self._spec.rounds and self._asked.should_prune())
        return self.cancelled or stalled or self.pruned


def require() -> Any:
    """Return the optuna module.

    :raises SearchUnavailableError: when it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 - an extra
    except ImportError:
        raise SearchUnavailableError(
            "a search needs Optuna, which is not installed: "
            "`.venv/bin/pip install -e '.[search]'`, or leave"
            " search out"
        ) from None
    return optuna


def _try(
    study: _Study,
    spec: TrainSpec,
    goal: Goal,
    metric: str,
    params: dict[str, Any],
    matrices: tuple[xgb.QuantileDMatrix, xgb.QuantileDMatrix],
    report: Report,
    before: Sequence[Trial],
) -> Trial:
    asked = study.ask(len(before))
    told = {
        "trial": len(before) + 1,
        **({"best": round(study.best(before).value, 6)} if before else {}),
    }
    total = spec.search.trials if spec.search else len(before) + 1
    report.progress(
        len(before), total, f"search: trial {len(before) + 1} of {total}", metric=metric, **told
    )
    watch = _Watch(study, asked, spec, metric, report)
    started_s = time.monotonic()
    xgb.train(
        learning({**params, **asked.params}, goal, metric),
        matrices[0],
        spec.rounds,
        evals=[(matrices[1], "validation")],
        verbose_eval=False,
        callbacks=[watch],
    )
    if watch.cancelled:
        raise CancelledJobError
    best = watch.best_round if spec.early_stopping_rounds else len(watch.history)
    value = watch.history[best - 1]
    study.tell(asked, value, pruned=watch.pruned)
    return Trial(
        number=len(before),
        params=dict(asked.params),
        value=value,
        best_round=best,
        pruned=watch.pruned,
        seconds=round(time.monotonic() - started_s, 3),
        history=tuple(watch.history),
    )


def _save(path: Path, key: str, trials: Sequence[Trial]) -> None:
    write_atomically(
        path, orjson.dumps({"key": key, "trials": [asdict(trial) for trial in trials]})
    )


def _load(path: Path, key: str) -> list[Trial]:
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [Trial(**trial) for trial in content["trials"]] if content.get("key") == key else []
