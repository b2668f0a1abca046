"""Tests of a training from an export to a model: results, files and refusals."""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xgboost as xgb

from mev.core.errors import MevError
from mev.jobs.errors import CancelledJobError
from mev.training import data, evaluation
from mev.training.errors import (
    DamagedExportError,
    EmptyExportError,
    EmptyFeatureError,
    InfiniteFeatureError,
    InvalidTrainingError,
    LeakingFeatureError,
    MissingTargetError,
    NoGpuError,
    OneClassError,
    UnknownColumnError,
)
from mev.training.fit import CHECKPOINT
from mev.training.rows import prepare
from mev.training.run import run
from mev.training.spec import parse
from mev.wire.features import OPPORTUNITY
from tests.services.waits import until
from tests.unit.training.exports import Watcher, write_export

QUICK: dict[str, Any] = {
    "rounds": 12,
    "params": {"max_depth": 3, "eta": 0.3},
    "device": "cpu",
    "early_stopping_rounds": 0,
}


@pytest.mark.usefixtures("drawn")
def test_the_landing_of_bundles_is_learned(export: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    result = run(
        {"rounds": 80, "params": {"max_depth": 4}, "early_stopping_rounds": 15},
        export,
        tmp_path,
        watcher,
    )
    assert result.figures["auc"] >= 0.8
    assert result.figures["pr_auc"] > result.figures["base_rate"] + 0.2
    assert result.figures["calibration_error"] < 0.1
    assert result.features == OPPORTUNITY.names
    assert next(iter(result.importance)) in {"tip_share", "rivals", "latency_ms"}
    assert result.feature_schema_hash == OPPORTUNITY.hash
    written = json.loads((tmp_path / "result.json").read_bytes())
    assert written["metrics"] == result.figures
    assert written["lineage"]["resumed_from"] is None
    model = xgb.Booster(model_file=str(tmp_path / "model.ubj"))
    assert model.num_boosted_rounds() == result.best_round <= len(written["history"]["logloss"])
    names = {"learning", "importance", "roc", "precision_recall", "calibration", "profit"}
    assert {path.stem for path in tmp_path.glob("*.png")} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))
    assert {path.stem for path in tmp_path.glob("*.svg")} == names
    made_with = written["lineage"]["environment"]
    assert (made_with["packages"]["pyarrow"], made_with["threads"]) == (pa.__version__, 1)
    assert made_with["processor"]
    assert (written["lineage"]["params"]["max_depth"], written["lineage"]["params"]["eta"]) == (
        4,
        0.1,
    )
    assert (
        written["lineage"]["export_manifest_sha256"]
        == hashlib.sha256((export / "manifest.json").read_bytes()).hexdigest()
    )
    assert not (tmp_path / CHECKPOINT).exists()
    rounds = [told for told in watcher.told if "logloss" in told[3]]
    assert [told[0] for told in rounds] == list(range(1, result.rounds + 1))


def test_rows_of_the_simulator_are_counted(table: pa.Table, tmp_path: Path) -> None:
    real = replaced(table, "simulated", pa.array([row % 3 == 0 for row in range(table.num_rows)]))
    folder = write_export(tmp_path / "export", real)
    training_data = prepare(folder, parse(QUICK | {"include_simulated": True}))
    kept = training_data.cut.train | training_data.cut.validation
    assert training_data.counts.simulated == sum(number % 3 == 0 for number in kept.nonzero()[0])
    assert training_data.cut.left_out == 0


def test_simulated_rows_are_left_out_where_there_are_real_ones(
    table: pa.Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    simulated = np.arange(table.num_rows) % 3 == 0
    mixed = replaced(table, "simulated", pa.array(simulated))
    folder = write_export(tmp_path / "mixed", mixed)
    (tmp_path / "out").mkdir()
    watcher = Watcher()
    with caplog.at_level("INFO"):
        run(QUICK, folder, tmp_path / "out", watcher)
    left_out = int(simulated.sum())
    counted = json.loads((tmp_path / "out" / "result.json").read_bytes())["rows"]
    assert (counted["simulated"], counted["simulated_left_out"]) == (0, left_out)
    assert (
        counted["train"] + counted["embargo"] + counted["validation"] == table.num_rows - left_out
    )
    said = (
        f"{counted['train'] + counted['validation']} real rows are used; {left_out} simulated ones"
        " are left out (include_simulated)"
    )
    assert said in caplog.text
    assert said in [note for _, _, note, _ in watcher.told]
    alone = write_export(tmp_path / "real", mixed.filter(pa.array(~simulated)))
    (tmp_path / "alone").mkdir()
    run(QUICK, alone, tmp_path / "alone", Watcher())
    assert (tmp_path / "out" / "model.ubj").read_bytes() == (
        tmp_path / "alone" / "model.ubj"
    ).read_bytes()


def test_too_few_real_rows_name_those_that_are_left_out(table: pa.Table, tmp_path: Path) -> None:
    one = replaced(table, "simulated", pa.array([row > 0 for row in range(table.num_rows)]))
    with pytest.raises(
        EmptyExportError,
        match=rf"{table.num_rows - 1} simulated rows are left out \(include_simulated\)",
    ):
        prepare(write_export(tmp_path / "export", one), parse(QUICK))


def test_frozen_rows_are_from_all_that_validates(
    export: Path, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_FROZEN_ROWS", 1000)
    result = run(QUICK, export, tmp_path, Watcher())
    cut = data.split(data.open_export(export), validation_share=0.2, embargo_slots=32)
    rows = data.numbers(table.filter(pa.array(cut.validation)), OPPORTUNITY.names)
    assert 1000 < len(rows) < 2000  # where every row were taken, the newer ones would be left out
    assert result.frozen_rows.tobytes() == rows[::2].tobytes()


def test_the_same_request_gives_the_same_model_and_matches_a_plain_training(
    export: Path, table: pa.Table, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        result = run(QUICK, export, tmp_path / name, Watcher())
    assert (tmp_path / "a/model.ubj").read_bytes() == (tmp_path / "b/model.ubj").read_bytes()
    cut = data.split(data.open_export(export), validation_share=0.2, embargo_slots=32)
    rows, landed = data.numbers(table, OPPORTUNITY.names), data.numbers(table, ["landed"])[:, 0]
    plain = xgb.train(
        {"objective": "binary:logistic", "max_depth": 3, "eta": 0.3},
        xgb.QuantileDMatrix(rows[cut.train], landed[cut.train]),
        12,
    )
    np.testing.assert_allclose(
        plain.inplace_predict(result.frozen_rows),
        result.booster.inplace_predict(result.frozen_rows),
        atol=1e-5,
    )


def test_the_newest_rows_validate_and_none_is_near_those_learned_from(
    export: Path, table: pa.Table
) -> None:
    cut = data.split(data.open_export(export), validation_share=0.25, embargo_slots=50)
    slots = table.column("slot").to_numpy()
    assert slots[cut.validation].min() - slots[cut.train].max() > 50
    assert abs(cut.validation.mean() - 0.25) < 0.01
    assert cut.embargoed == len(slots) - cut.train.sum() - cut.validation.sum() > 0
    assert not (cut.train & cut.validation).any()


def test_rows_in_another_order_are_split_by_their_slot_too(table: pa.Table, tmp_path: Path) -> None:
    shuffled = table.take(np.random.default_rng(1).permutation(table.num_rows))
    cut = data.split(
        data.open_export(write_export(tmp_path / "x", shuffled)),
        validation_share=0.25,
        embargo_slots=50,
    )
    slots = shuffled.column("slot").to_numpy()
    assert slots[cut.validation].min() - slots[cut.train].max() > 50


def test_regression(export: Path, tmp_path: Path) -> None:
    spec = QUICK | {"objective": "regression", "target": "profit_lamports", "rounds": 20}
    result = run(spec, export, tmp_path, Watcher())
    assert result.figures["r2"] > 0.2
    assert {path.stem for path in tmp_path.glob("*.png")} == {"learning", "importance"}


def test_a_balanced_weight_raises_the_scores_of_the_rare_class(
    export: Path, tmp_path: Path
) -> None:
    means = []
    for number, weight in enumerate((None, 20.0)):
        (tmp_path / str(number)).mkdir()
        result = run(QUICK | {"class_weight": weight}, export, tmp_path / str(number), Watcher())
        means.append(result.booster.inplace_predict(result.frozen_rows).mean())
    assert means[1] > means[0] + 0.1


def test_a_training_stops_when_it_gets_no_better_and_keeps_its_best_round(
    export: Path, tmp_path: Path
) -> None:
    spec = {
        "rounds": 400,
        "params": {"eta": 1.0, "max_depth": 6},
        "early_stopping_rounds": 5,
        "device": "cpu",
    }
    result = run(spec, export, tmp_path, Watcher())
    assert result.rounds == result.best_round + 5 < 400
    history = json.loads((tmp_path / "result.json").read_bytes())["history"]["logloss"]
    assert (
        history.index(min(history)) + 1 == result.best_round == result.booster.num_boosted_rounds()
    )


def test_a_training_that_was_cancelled_goes_on_where_it_was(export: Path, tmp_path: Path) -> None:
    straight, resumed, work = tmp_path / "straight", tmp_path / "resumed", tmp_path / "work"
    for folder in (straight, resumed, work):
        folder.mkdir()
    run(QUICK, export, straight, Watcher())
    with pytest.raises(CancelledJobError):
        run(QUICK, export, resumed, Watcher(cancel_after=5), work=work)
    assert [path.name for path in (*resumed.iterdir(), *work.iterdir())] == [CHECKPOINT]
    watcher = Watcher()
    assert run(QUICK, export, resumed, watcher, work=work).resumed_from == 5
    assert next(told[0] for told in watcher.told if "logloss" in told[3]) == 6
    assert (resumed / "model.ubj").read_bytes() == (straight / "model.ubj").read_bytes()
    histories = [
        json.loads((folder / "result.json").read_bytes())["history"]
        for folder in (straight, resumed)
    ]
    np.testing.assert_allclose(histories[0]["logloss"], histories[1]["logloss"], rtol=1e-6)


class _Slow(Watcher):
    """Leaves time to be killed in."""

    def progress(self, done: float, total: float, note: str = "", **figures: object) -> None:
        super().progress(done, total, note, **figures)
        if done >= 4:
            time.sleep(60)


def _run_slowly(export: Path, folder: Path) -> None:
    run(QUICK | {"checkpoint_every": 1}, export, folder, _Slow())


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_to_the_same_model(export: Path, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    run(QUICK | {"checkpoint_every": 1}, export, straight, Watcher())
    process = multiprocessing.get_context("spawn").Process(
        target=_run_slowly, args=(export, killed)
    )
    process.start()
    until(lambda: (killed / CHECKPOINT).exists() or not process.is_alive())
    assert process.is_alive()
    process.kill()
    process.join()
    assert not (killed / "model.ubj").exists()
    assert run(QUICK | {"checkpoint_every": 1}, export, killed, Watcher()).resumed_from in {
        1,
        2,
        3,
        4,
    }
    assert (killed / "model.ubj").read_bytes() == (straight / "model.ubj").read_bytes()


def test_a_checkpoint_of_another_training_is_not_taken(export: Path, tmp_path: Path) -> None:
    with pytest.raises(CancelledJobError):
        run(QUICK, export, tmp_path, Watcher(cancel_after=5))
    assert run(QUICK | {"seed": 1}, export, tmp_path, Watcher()).resumed_from is None


def test_a_checkpoint_at_which_it_would_have_stopped_ends_at_once(
    export: Path, tmp_path: Path
) -> None:
    spec = {
        "rounds": 400,
        "params": {"eta": 1.0},
        "early_stopping_rounds": 5,
        "checkpoint_every": 1,
        "device": "cpu",
    }

    class Dies(Watcher):
        def progress(self, done: float, total: float, note: str = "", **figures: object) -> None:
            super().progress(done, total, note, **figures)
            if note == "validating":
                raise MemoryError

    with pytest.raises(MemoryError):
        run(spec, export, tmp_path, Dies())
    watcher = Watcher()
    result = run(spec, export, tmp_path, watcher)
    assert result.resumed_from == result.rounds
    assert not [told for told in watcher.told if "logloss" in told[3]]


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def nothing(table: pa.Table) -> pa.Table:
    return replaced(table, "rivals", pa.nulls(table.num_rows, pa.float32()))


def one_class(table: pa.Table) -> pa.Table:
    return table.filter(table.column("landed"))


def new_class(table: pa.Table) -> pa.Table:
    late = pc.greater(table.column("slot"), table.column("slot")[table.num_rows // 2])
    return replaced(table, "landed", late)


def null_target(table: pa.Table) -> pa.Table:
    return replaced(table, "landed", pc.if_else(table.column("landed"), True, None))


def nan_target(table: pa.Table) -> pa.Table:
    return replaced(
        table, "landed", pa.array(np.where(np.arange(table.num_rows) == 5, np.nan, 1.0))
    )


def three_classes(table: pa.Table) -> pa.Table:
    return replaced(table, "landed", pa.array(np.arange(table.num_rows) % 3))


def infinite(table: pa.Table) -> pa.Table:
    values = table.column("rivals").to_numpy().copy()
    values[77] = np.inf
    return replaced(table, "rivals", pa.array(values))


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (nothing, EmptyFeatureError, "rivals is missing in every row"),
        (one_class, OneClassError, "landed is 1 in every row that is learned from"),
        (new_class, OneClassError, "every row that is validated with"),
        (null_target, MissingTargetError, "landed is missing"),
        (nan_target, MissingTargetError, "landed is missing or infinite in 1 rows"),
        (three_classes, MissingTargetError, "regression"),
        (infinite, InfiniteFeatureError, "rivals"),
        (lambda table: table.slice(0, 0), EmptyExportError, "no rows"),
        (lambda table: table.slice(0, 30), EmptyExportError, "0 to learn from"),
    ],
)
def test_rows_that_teach_nothing_are_refused(
    table: pa.Table,
    tmp_path: Path,
    change: Callable[[pa.Table], pa.Table],
    error: type[MevError],
    reason: str,
) -> None:
    folder = write_export(tmp_path / "export", change(table.slice(0, 3000)))
    with pytest.raises(error, match=reason):
        run(QUICK, folder, tmp_path, Watcher())


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        ({"target": "luck"}, UnknownColumnError, "luck"),
        ({"features": ["rivals", "luck"]}, UnknownColumnError, "luck"),
        ({"features": ["rivals", "rivals"]}, UnknownColumnError, "twice"),
        ({"features": ["id"]}, UnknownColumnError, "only numbers"),
        ({"features": ["rivals", "profit_lamports"]}, LeakingFeatureError, "profit_lamports"),
        ({"features": ["rivals", "landed"]}, LeakingFeatureError, "landed"),
        ({"rounds": 0}, InvalidTrainingError, "rounds"),
        ({"params": {"max_depth": 13}}, InvalidTrainingError, "params.max_depth"),
        ({"params": {"tree_method": "exact"}}, InvalidTrainingError, "tree_method"),
        ({"params": {"eta": float("nan")}}, InvalidTrainingError, "eta"),
        ({"objective": "guess"}, InvalidTrainingError, "objective"),
        (
            {"objective": "regression", "class_weight": 2},
            InvalidTrainingError,
            "class_weight is for objective binary",
        ),
        ({"validation_share": 1}, InvalidTrainingError, "validation_share"),
        ({"device": "cuda"}, NoGpuError, "xgboost-cpu"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(
    export: Path,
    tmp_path: Path,
    spec: dict[str, Any],
    error: type[MevError],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(xgb, "build_info", lambda: {"USE_CUDA": False})
    with pytest.raises(error, match=reason):
        run(QUICK | spec, export, tmp_path, Watcher())


def test_a_gpu_that_xgboost_does_not_take_is_none(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if xgb.build_info()["USE_CUDA"]:
        pytest.skip("this XGBoost may have a GPU")
    monkeypatch.setattr(xgb, "build_info", lambda: {"USE_CUDA": True})
    with pytest.raises(NoGpuError, match="took cpu by itself"):
        run(QUICK | {"device": "cuda"}, export, tmp_path, Watcher())
    assert run(QUICK | {"device": "auto"}, export, tmp_path, Watcher()).device == "cpu"


def test_an_export_that_is_not_whole_is_refused(table: pa.Table, tmp_path: Path) -> None:
    few = table.slice(0, 3000)
    changed = write_export(tmp_path / "changed", few)
    part = changed / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DamagedExportError, match="part-00001"):
        run(QUICK, changed, tmp_path, Watcher())
    part.unlink()
    with pytest.raises(DamagedExportError, match="cannot be read"):
        run(QUICK, changed, tmp_path, Watcher())
    for number, change in enumerate(
        (lambda content: content.update(rows=2999), lambda content: content.pop("parts"))
    ):
        with pytest.raises(DamagedExportError):
            run(
                QUICK, write_export(tmp_path / str(number), few, change=change), tmp_path, Watcher()
            )
    with pytest.raises(DamagedExportError):
        run(QUICK, tmp_path / "nowhere", tmp_path, Watcher())
