"""One training, from the folder of an export to a folder with the model, its figures and its pictures.

A plain function: whoever calls it decides in which process. The same export, request and seed give the same model.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xgboost as xgb

import mev
from mev.core.files import write_atomically
from mev.jobs.errors import CancelledJobError
from mev.predict.predictor import Rows as Table
from mev.training import data, device, metrics, plots
from mev.training.check import Counts, check
from mev.training.fit import CHECKPOINT, Fitted, Report, Rows, fit, key_of
from mev.training.spec import Objective, TrainSpec, parse

RESULT, MODEL = "result.json", "model.ubj"
_FROZEN_ROWS = 4096
_EXPLAINED_ROWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A trained model, and what is known of it; `frozen_rows` are of the validation."""

    booster: xgb.Booster
    features: tuple[str, ...]
    feature_schema: str | None
    feature_schema_hash: str | None
    frozen_rows: Table
    figures: Mapping[str, float]
    importance: Mapping[str, float]
    best_round: int
    rounds: int
    resumed_from: int | None
    device: str
    lineage: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Scored:
    target: metrics.Numbers
    scores: metrics.Numbers
    profit: metrics.Numbers | None
    frozen: Table


def run(spec: Mapping[str, Any], export_folder: Path, output: Path, report: Report, *, work: Path | None = None) -> Result:
    """Train on the export in `export_folder` and write the model, ``result.json`` and pictures into `output`.

    Checkpoints go to `work` (`output`, without one): a later call with the same arguments goes on from the last.

    :raises MevError: naming what is wrong with the request or the rows.
    :raises CancelledJobError: when `report` says that it is not wanted any longer.
    """
    work = work or output
    asked = parse(spec)
    used = device.choose(asked.device)
    report.progress(0, asked.rounds, "reading")
    export = data.open_export(export_folder)
    features = data.choose_features(export, asked)
    cut = data.split(export, validation_share=asked.validation_share, embargo_slots=asked.embargo_slots)
    counts = check(export, cut, features, asked.target, asked.objective)
    if report.is_cancelled():
        raise CancelledJobError
    params = _params(asked, counts, used)
    train = xgb.QuantileDMatrix(Rows(export, features, asked.target, cut.train), max_bin=asked.params.max_bin)
    validation = xgb.QuantileDMatrix(Rows(export, features, asked.target, cut.validation), ref=train, max_bin=asked.params.max_bin)
    fitted = fit(asked, params, train, validation, work, key_of(asked, export, used), report)
    report.progress(asked.rounds, asked.rounds, "validating")
    scored = _score(export, cut, features, asked, fitted.booster)
    result = _result(asked, export, features, counts, cut, fitted, scored, used, output)
    (work / CHECKPOINT).unlink(missing_ok=True)
    return result


def _params(spec: TrainSpec, counts: Counts, used: str) -> dict[str, Any]:
    params = spec.params.model_dump() | {"tree_method": "hist", "device": used, "seed": spec.seed, "nthread": len(os.sched_getaffinity(0))}
    if spec.class_weight is not None and spec.objective is Objective.BINARY:
        balanced = (counts.train - counts.train_positive) / counts.train_positive
        params["scale_pos_weight"] = balanced if spec.class_weight == "balanced" else spec.class_weight
    return params


def _score(export: data.Export, cut: data.Split, features: tuple[str, ...], spec: TrainSpec, booster: xgb.Booster) -> _Scored:
    has_profit = data.PROFIT in export.columns and spec.objective is Objective.BINARY
    wanted = list(dict.fromkeys([spec.target, *([data.PROFIT] if has_profit else [])]))
    parts: list[tuple[Any, ...]] = []
    step = max(1, int(cut.validation.sum()) // _FROZEN_ROWS)
    for table in data.batches(export, [*features, *wanted], cut.validation):
        rows = data.numbers(table, features)
        scores = booster.inplace_predict(rows, missing=np.nan, validate_features=False)
        profit = table.column(data.PROFIT).to_numpy().astype(np.float64) if has_profit else None
        parts.append((data.numbers(table, [spec.target])[:, 0], scores, profit, rows[::step]))
    target, scores, profits, frozen = zip(*parts, strict=True)
    return _Scored(
        np.concatenate(target),
        np.concatenate(scores),
        np.concatenate(profits) if has_profit else None,
        np.concatenate(frozen)[:_FROZEN_ROWS],
    )


def _importance(booster: xgb.Booster, features: tuple[str, ...], rows: Table) -> dict[str, float]:
    """Return the mean of what each feature adds to or takes from the margin of a row (SHAP)."""
    matrix = xgb.DMatrix(rows[:_EXPLAINED_ROWS], feature_names=list(features), missing=np.nan)
    shares = np.abs(booster.predict(matrix, pred_contribs=True)).mean(axis=0)[:-1]
    named = zip(features, (float(share) for share in shares), strict=True)
    return dict(sorted(named, key=lambda item: -item[1]))


def _result(
    spec: TrainSpec,
    export: data.Export,
    features: tuple[str, ...],
    counts: Counts,
    cut: data.Split,
    fitted: Fitted,
    scored: _Scored,
    used: str,
    output: Path,
) -> Result:
    importance = _importance(fitted.booster, features, scored.frozen)
    plots.learning(output / "learning.png", fitted.metric, fitted.history, fitted.best_round)
    plots.importance(output / "importance.png", importance)
    if spec.objective is Objective.BINARY:
        figures, curves = metrics.binary(scored.target, scored.scores, scored.profit)
        plots.binary(output, figures, curves)
    else:
        figures = metrics.regression(scored.target, scored.scores)
    model = bytes(fitted.booster.save_raw("ubj"))
    write_atomically(output / MODEL, model)
    lineage = {
        "export_manifest_sha256": export.manifest_sha256,
        "code_version": mev.__version__,
        "xgboost": xgb.__version__,
        "spec": spec.model_dump(mode="json"),
        "seed": spec.seed,
        "device": used,
        "resumed_from": fitted.resumed_from,
    }
    split = {"cutoff_slot": cut.cutoff_slot, "train": counts.train, "embargo": cut.embargoed, "validation": counts.validation}
    content = {
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "features": features,
        "target": spec.target,
        "metrics": figures,
        "importance": importance,
        "rows": split,
        "rounds": len(fitted.history),
        "best_round": fitted.best_round,
        "history": {fitted.metric: fitted.history},
        "lineage": lineage,
    }
    write_atomically(output / RESULT, orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return Result(
        booster=fitted.booster,
        features=features,
        feature_schema=export.feature_schema,
        feature_schema_hash=export.feature_schema_hash,
        frozen_rows=scored.frozen,
        figures=figures,
        importance=importance,
        best_round=fitted.best_round,
        rounds=len(fitted.history),
        resumed_from=fitted.resumed_from,
        device=used,
        lineage=lineage,
    )
