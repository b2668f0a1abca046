"""Tests of ranking: grades, whole slots, metrics against their definitions, and a training."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xgboost as xgb

from mev.core.errors import MevError
from mev.registry.pack import pack
from mev.scoring.native_engine import open_model
from mev.training import data, ranking
from mev.training.errors import MissingTargetError, NoGroupsError, UnsortedExportError
from mev.training.rows import matrices, prepare
from mev.training.run import run
from mev.training.spec import TrainSpec, parse
from tests.unit.training.exports import Watcher, write_export

SPEC = {
    "objective": "ranking",
    "target": "profit_lamports",
    "rounds": 40,
    "params": {"max_depth": 4},
    "device": "cpu",
}


def _gain(grades: list[float]) -> float:
    return float(sum((2**grade - 1) / np.log2(place + 2) for place, grade in enumerate(grades)))


def test_figures_are_as_defined() -> None:
    draw = np.random.default_rng(3)
    slots = np.sort(draw.integers(0, 60, 200))
    grades, scores = draw.integers(0, 5, 200).astype(float), draw.integers(0, 9, 200) / 9
    profit = draw.standard_normal(200)
    ndcg: dict[int, list[float]] = {1: [], 5: []}
    best_first, first, chance, best = [], 0.0, 0.0, 0.0
    for slot in np.unique(slots):
        rows = np.flatnonzero(slots == slot)
        if len(rows) > 1:
            ranked = sorted(rows, key=lambda row: (-scores[row], row))
            first, chance, best = (
                first + profit[ranked[0]],
                chance + profit[rows].mean(),
                best + profit[rows].max(),
            )
        if len(set(grades[rows])) > 1:
            for places, found in ndcg.items():
                found.append(
                    _gain(list(grades[ranked[:places]]))
                    / _gain(sorted(grades[rows], reverse=True)[:places])
                )
            best_first.append(grades[ranked[0]] == grades[rows].max())
    figures = ranking.figures(grades, scores, slots, profit)
    assert figures["ndcg_1"] == pytest.approx(np.mean(ndcg[1]))
    assert figures["ndcg_5"] == pytest.approx(np.mean(ndcg[5]))
    assert figures["best_first"] == pytest.approx(np.mean(best_first))
    assert figures["ranked_slots"] == len(best_first)
    found = [figures[f"{name}_profit_lamports"] for name in ("first", "chance", "ideal")]
    assert found == pytest.approx([first, chance, best])


def test_xgboost_judges_the_same_order_the_same(export: Path, table: pa.Table) -> None:
    cut = data.split(data.open_export(export), validation_share=0.2, embargo_slots=32)
    rows = table.filter(pa.array(cut.validation))
    slots = rows.column("slot").to_numpy().astype(np.int64)
    landed, scores = data.numbers(rows, ["landed"])[:, 0], data.numbers(rows, ["rivals"])
    chosen = np.isin(
        slots, [slot for slot in np.unique(slots) if len(set(landed[slots == slot])) > 1]
    )
    given = (landed[chosen], scores[chosen, 0], slots[chosen])
    matrix = xgb.DMatrix(scores[chosen], landed[chosen], qid=slots[chosen])
    booster = xgb.train({"objective": "rank:ndcg", "eval_metric": ["ndcg@5", "ndcg@1"]}, matrix, 3)
    given = (landed[chosen], booster.predict(matrix), slots[chosen])
    judged = dict(item.split(":") for item in booster.eval(matrix).split("\t")[1:])
    figures = ranking.figures(*given, None)
    assert figures["ndcg_5"] == pytest.approx(
        float(judged["eval-ndcg@5"]), abs=0.02
    )  # equal scores are ordered otherwise


def test_grades() -> None:
    assert ranking.Grading(edges=())(np.array([0.0, 1.0])).tolist() == [0, 1]
    assert ranking.Grading(edges=(0.0, 10.0, 20.0, 30.0))(
        np.array([-5.0, 0, 1, 10, 11, 30, 31])
    ).tolist() == [0, 0, 1, 1, 2, 3, 4]


def test_profits_are_graded_by_the_rows_that_are_learned_from(
    export: Path, table: pa.Table
) -> None:
    opened = data.open_export(export)
    cut = data.split(opened, validation_share=0.2, embargo_slots=32)
    profit = table.column("profit_lamports").to_numpy()
    learned = profit[cut.train]
    expected = (0.0, *np.quantile(learned[learned > 0].astype(np.float32), (0.25, 0.5, 0.75)))
    assert ranking.grade(opened, cut, "profit_lamports").edges == pytest.approx(expected)
    assert ranking.grade(opened, cut, "landed").edges == ()


def test_grades_are_whole_on_both_sides_or_on_neither(table: pa.Table, tmp_path: Path) -> None:
    landed = table.column("landed").to_numpy().astype(np.float64)
    landed[-3:] = 40.5
    changed = table.set_column(table.column_names.index("landed"), "landed", pa.array(landed))
    opened = data.open_export(write_export(tmp_path / "export", changed))
    grading = ranking.grade(
        opened, data.split(opened, validation_share=0.2, embargo_slots=32), "landed"
    )
    assert grading(np.array([0.0, 40.5])).tolist() == [0, 4]


def test_slots_are_not_divided_between_batches() -> None:
    slots = np.repeat(np.arange(20, dtype=np.int64), np.random.default_rng(5).integers(1, 9, 20))
    whole = pa.table({"slot": slots, "row": np.arange(len(slots))})
    for size in (1, 3, 7, 1000):
        parts = [whole.slice(start, size) for start in range(0, len(slots), size)]
        given = list(ranking.whole_slots(parts))
        assert pa.concat_tables(given).equals(whole)
        edges = [
            (part.column("slot")[0].as_py(), part.column("slot")[-1].as_py()) for part in given
        ]
        assert all(before[1] < after[0] for before, after in pairwise(edges))


def test_the_groups_are_the_slots(
    table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_BATCH_ROWS", 700)
    training_data = prepare(write_export(tmp_path / "export", table.slice(0, 3000)), parse(SPEC))
    for matrix, keep in zip(
        matrices(training_data, 64),
        (training_data.cut.train, training_data.cut.validation),
        strict=True,
    ):
        counts = np.unique(table.column("slot").to_numpy()[:3000][keep], return_counts=True)[1]
        assert np.diff(matrix.get_uint_info("group_ptr")).tolist() == counts.tolist()


def test_the_best_of_a_slot_is_learned_and_packs(export: Path, tmp_path: Path) -> None:
    result = run(SPEC, export, tmp_path, Watcher())
    figures = result.figures
    assert figures["best_first"] > figures["best_first_by_chance"] + 0.15
    assert 0.7 < figures["ndcg_5"] <= 1
    assert (
        figures["chance_profit_lamports"] * 1.3
        < figures["first_profit_lamports"]
        <= figures["ideal_profit_lamports"]
    )
    engine = open_model(pack(result.booster))
    assert {path.stem for path in tmp_path.glob("*.png")} == {"learning", "importance"}
    assert (
        engine.predict(result.frozen_rows) == result.booster.inplace_predict(result.frozen_rows)
    ).all()


def _alone(table: pa.Table) -> pa.Table:
    return table.set_column(1, "slot", pa.array(np.arange(table.num_rows) * 3, pa.uint64()))


def _alike(table: pa.Table) -> pa.Table:
    slots = table.column("slot").to_numpy()
    return table.set_column(
        table.schema.get_field_index("landed"), "landed", pa.array(slots % 2 == 0)
    )


def _shuffled(table: pa.Table) -> pa.Table:
    return table.take(np.random.default_rng(1).permutation(table.num_rows))


def _missing(table: pa.Table) -> pa.Table:
    return table.set_column(
        table.schema.get_field_index("landed"), "landed", pa.nulls(table.num_rows, pa.bool_())
    )


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (_alone, NoGroupsError, "0 have two rows or more"),
        (_alike, NoGroupsError, "none has rows of different landed"),
        (_shuffled, UnsortedExportError, "order of their slots"),
        (_missing, MissingTargetError, "landed is missing"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    table: pa.Table,
    tmp_path: Path,
    change: Callable[[pa.Table], pa.Table],
    error: type[MevError],
    reason: str,
) -> None:
    folder = write_export(tmp_path / "export", change(table.slice(0, 3000)))
    with pytest.raises(error, match=reason):
        run(SPEC | {"target": "landed"}, folder, tmp_path, Watcher())


def test_the_request_says_what_it_ranks_by() -> None:
    assert isinstance(parse(SPEC | {"search": {"metric": "ndcg@1"}}), TrainSpec)
