"""Tests of the parameter search: trials, stored state, resumption and refusals."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mev.jobs.errors import CancelledJobError
from mev.training.errors import InvalidTrainingError, SearchUnavailableError
from mev.training.run import run
from mev.training.search import TRIALS
from mev.training.spec import SPACE, parse
from tests.unit.training.exports import Watcher, write_export

SPEC: dict[str, Any] = {
    "rounds": 8,
    "params": {"max_depth": 2, "eta": 0.05},
    "device": "cpu",
    "search": {"trials": 6, "space": {"eta": [0.05, 0.8], "max_depth": [2, 5]}},
}


class Dies(Watcher):
    """Is killed when a trial begins."""

    def __init__(self, trial: int) -> None:
        super().__init__()
        self._trial = trial

    def progress(self, done: float, total: float, note: str = "", **figures: object) -> None:
        super().progress(done, total, note, **figures)
        if figures.get("trial") == self._trial:
            os.kill(os.getpid(), signal.SIGKILL)


def _trials(folder: Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((folder / "result.json").read_bytes())["search"][
        "trials"
    ]
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in trials]


@pytest.fixture(scope="module")
def export(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("search") / "export", table.slice(0, 2500))


def test_the_best_parameters_train_the_model(export: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    result = run(SPEC, export, tmp_path, watcher)
    written = json.loads((tmp_path / "result.json").read_bytes())
    found, trials = written["search"], written["search"]["trials"]
    assert [trial["number"] for trial in trials] == list(range(6))
    assert all(
        0.05 <= trial["params"]["eta"] <= 0.8 and trial["params"]["max_depth"] in {2, 3, 4, 5}
        for trial in trials
    )
    best = min((trial for trial in trials if not trial["pruned"]), key=lambda trial: trial["value"])
    assert (found["best_trial"], found["params"]) == (best["number"], best["params"])
    assert (
        found["validation_used_for_choosing"]
        is written["lineage"]["search"]["validation_used_for_choosing"]
        is True
    )
    assert result.lineage["params"]["eta"] == best["params"]["eta"]
    assert min(written["history"]["logloss"]) == pytest.approx(best["value"], rel=1e-6)
    assert not (tmp_path / TRIALS).exists()
    told = [figures for _, _, note, figures in watcher.told if note.startswith("search")]
    assert [figures["trial"] for figures in told] == list(range(1, 7))
    assert told[-1]["best"] == pytest.approx(min(trial["value"] for trial in trials[:-1]), abs=1e-5)


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_as_if_it_had_not(export: Path, tmp_path: Path) -> None:
    straight, died = tmp_path / "straight", tmp_path / "died"
    for folder in (straight, died):
        folder.mkdir()
    run(SPEC, export, straight, Watcher())
    process = multiprocessing.get_context("spawn").Process(
        target=run, args=(SPEC, export, died, Dies(5))
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(json.loads((died / TRIALS).read_bytes())["trials"]) == 4
    watcher = Watcher()
    run(SPEC, export, died, watcher)
    assert [told[3]["trial"] for told in watcher.told if "trial" in told[3]] == [5, 6]
    assert _trials(died) == _trials(straight)
    assert (died / "model.ubj").read_bytes() == (straight / "model.ubj").read_bytes()


def test_trials_of_another_request_are_not_taken_and_a_cancelled_one_is_not_counted(
    export: Path, tmp_path: Path
) -> None:
    class Cancels(Watcher):
        def is_cancelled(self) -> bool:
            return any(figures.get("trial") == 3 for _, _, _, figures in self.told)

    with pytest.raises(CancelledJobError):
        run(SPEC, export, tmp_path, Cancels())
    assert len(json.loads((tmp_path / TRIALS).read_bytes())["trials"]) == 2
    watcher = Watcher()
    run(SPEC | {"seed": 5, "search": {"trials": 1, "timeout_s": 60}}, export, tmp_path, watcher)
    assert [told[3]["trial"] for told in watcher.told if "trial" in told[3]] == [1]


def test_hopeless_trials_are_pruned_and_more_can_be_better(export: Path, tmp_path: Path) -> None:
    space = {"trials": 12, "metric": "auc", "space": {"eta": [0.0005, 0.9], "max_depth": [1, 5]}}
    run(SPEC | {"rounds": 10, "search": space}, export, tmp_path, Watcher())
    found = json.loads((tmp_path / "result.json").read_bytes())["search"]
    assert any(trial["pruned"] for trial in found["trials"])
    assert found["best_value"] == max(
        trial["value"] for trial in found["trials"] if not trial["pruned"]
    )
    assert found["metric"] == "auc"


def test_no_trial_begins_after_the_time_is_up(export: Path, tmp_path: Path) -> None:
    run(SPEC | {"search": {"timeout_s": 1e-6}}, export, tmp_path, Watcher())
    assert len(_trials(tmp_path)) == 1
    assert set(_trials(tmp_path)[0]["params"]) == set(SPACE)


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        ({"trials": 0}, "search.trials"),
        ({"metric": "rmse"}, "binary is judged by logloss"),
        ({"space": {}}, "no parameter"),
        ({"space": {"luck": [0, 1]}}, "'luck' cannot be searched"),
        ({"space": {"max_bin": [16, 64]}}, "'max_bin' cannot be searched"),
        ({"space": {"eta": [0.5, 0.1]}}, "must be below"),
        ({"space": {"eta": [0.5, 1.1]}}, "eta: 1.1: Input should be less"),
        ({"space": {"max_depth": [2.5, 4]}}, "max_depth: 2.5"),
    ],
)
def test_searches_that_make_no_sense_are_refused(search: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidTrainingError, match=reason):
        parse(SPEC | {"search": search})


def test_without_optuna_it_says_what_to_install(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SearchUnavailableError, match=r"-e .\.\[search\]"):
        run(SPEC, export, tmp_path, Watcher())
