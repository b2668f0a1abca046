"""A single training run, from an export folder to a folder with model, figures and plots.

A plain function, independent of the process it runs in. The same export, request and seed give the
same model.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import xgboost as xgb

import mev
from mev.core.files import write_atomically
from mev.jobs.errors import CancelledJobError
from mev.scoring.predictor import Rows as Table
from mev.training import device, environment, evaluation, plots, rows
from mev.training.check import RowCounts
from mev.training.fit import CHECKPOINT, Fitted, Report, fit, key_of
from mev.training.rows import TrainingData
from mev.training.search import TRIALS, SearchResult, require, search
from mev.training.spec import Device, Objective, TrainSpec, parse

if TYPE_CHECKING:
    from mev.training.cluster import DaskCluster

LOG = logging.getLogger(__name__)
RESULT, MODEL = "result.json", "model.ubj"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """A trained model with its figures; `frozen_rows` are validation rows."""

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


def run(
    spec: Mapping[str, Any],
    export_folder: Path,
    output: Path,
    report: Report,
    *,
    work: Path | None = None,
    tls: Mapping[str, str] | None = None,
) -> TrainingResult:
    """Train on the export in `export_folder`; write model, ``result.json`` and plots to `output`.

    Checkpoints are written to `work`, or to `output` without it: a later call with the same
    arguments continues from the last one. `tls` has the PEM texts ``ca``, ``cert`` and ``key`` for
    a scheduler that uses TLS.

    :raises MevError: naming what is wrong with the request or the rows.
    :raises CancelledJobError: when the job was cancelled.
    """
    work = work or output
    asked = parse(spec)
    if asked.search:
        require()
    with _cluster(asked, work, tls) as cluster:
        used = device.choose(Device.CPU if cluster else asked.device)
        report.progress(0, asked.rounds, "reading")
        training_data = rows.prepare(export_folder, asked)
        report.progress(0, asked.rounds, _origin(training_data))
        LOG.info("%s", _origin(training_data))
        if report.is_cancelled():
            raise CancelledJobError
        params = _params(asked, training_data.counts, used)
        key = key_of(asked, training_data.export, used)
        if cluster:
            fitted, found = cluster.fit(asked, params, training_data, work, key, report), None
        else:
            fitted, found = _fit(asked, params, training_data, work, key, report)
    report.progress(asked.rounds, asked.rounds, "validating")
    result = _result(asked, training_data, fitted, found, params, used, output)
    for name in (CHECKPOINT, TRIALS):
        (work / name).unlink(missing_ok=True)
    return result


def _origin(training_data: TrainingData) -> str:
    """Return a sentence with the numbers of rows used, and of simulated ones."""
    cut, counts = training_data.cut, training_data.counts
    used = counts.train + counts.validation
    if cut.left_out:
        return (
            f"{used} real rows are used; {cut.left_out} simulated ones are left out"
            " (include_simulated)"
        )
    if counts.simulated == used:
        return (
            f"{used} rows are used, and all are simulated: the figures are those of a simulated"
            " market"
        )
    return f"{used} rows are used, {counts.simulated} of them simulated"


@contextmanager
def _cluster(
    spec: TrainSpec, work: Path, tls: Mapping[str, str] | None
) -> "Iterator[DaskCluster | None]":
    if spec.distributed is None:
        yield None
        return
    from mev.training.cluster import connected, secured  # noqa: PLC0415 - needs an extra

    with secured(work, tls) as security, connected(spec.distributed, security) as cluster:
        yield cluster


def _params(spec: TrainSpec, counts: RowCounts, used: str) -> dict[str, Any]:
    params = spec.params.model_dump() | {
        "tree_method": "hist",
        "device": used,
        "seed": spec.seed,
        "nthread": environment.threads(),
    }
    if spec.class_weight is not None and spec.objective is Objective.BINARY:
        balanced = (counts.train - counts.train_positive) / counts.train_positive
        params["scale_pos_weight"] = (
            balanced if spec.class_weight == "balanced" else spec.class_weight
        )
    return params


def _fit(
    spec: TrainSpec,
    params: dict[str, Any],
    training_data: TrainingData,
    work: Path,
    key: str,
    report: Report,
) -> tuple[Fitted, SearchResult | None]:
    train, validation = rows.matrices(training_data, spec.params.max_bin)
    found = (
        search(spec, spec.search, params, train, validation, work, key, report)
        if spec.search
        else None
    )
    if found:
        params.update(found.best.params)
    return fit(spec, params, train, validation, work, key, report), found


def _result(
    spec: TrainSpec,
    training_data: TrainingData,
    fitted: Fitted,
    found: SearchResult | None,
    params: Mapping[str, Any],
    used: str,
    output: Path,
) -> TrainingResult:
    scored = evaluation.score(training_data, fitted.booster)
    importance = evaluation.importance(fitted.booster, training_data.features, scored.frozen)
    evaluated = evaluation.evaluate(spec, training_data, scored, output)
    figures = evaluated.figures
    plots.learning(output / "learning.png", fitted.metric, fitted.history, fitted.best_round)
    plots.importance(output / "importance.png", importance)
    model = bytes(fitted.booster.save_raw("ubj"))
    write_atomically(output / MODEL, model)
    cut, counts = training_data.cut, training_data.counts
    counted = {
        "cutoff_slot": cut.cutoff_slot,
        "train": counts.train,
        "embargo": cut.embargoed,
        "validation": counts.validation,
        "simulated": counts.simulated,
        "simulated_left_out": cut.left_out,
    }
    lineage = _lineage(spec, training_data, fitted, found, params, used) | {
        "rows": counted,
        "importance": importance,
        "intervals": evaluated.intervals,
        "warnings": evaluated.warnings,
    }
    content = {
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "features": training_data.features,
        "target": spec.target,
        "metrics": figures,
        "intervals": evaluated.intervals,
        "warnings": evaluated.warnings,
        "importance": importance,
        "rows": counted,
        "rounds": len(fitted.history),
        "best_round": fitted.best_round,
        "history": {fitted.metric: fitted.history},
        "lineage": lineage,
    }
    if found:
        content["search"] = found.document()
    if training_data.grading:
        content["grades"] = {"edges": training_data.grading.edges}
    write_atomically(output / RESULT, orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return TrainingResult(
        booster=fitted.booster,
        features=training_data.features,
        feature_schema=training_data.export.feature_schema,
        feature_schema_hash=training_data.export.feature_schema_hash,
        frozen_rows=scored.frozen,
        figures=figures,
        importance=importance,
        best_round=fitted.best_round,
        rounds=len(fitted.history),
        resumed_from=fitted.resumed_from,
        device=used,
        lineage=lineage,
    )


def _lineage(
    spec: TrainSpec,
    training_data: TrainingData,
    fitted: Fitted,
    found: SearchResult | None,
    params: Mapping[str, Any],
    used: str,
) -> dict[str, Any]:
    lineage = {
        "export_manifest_sha256": training_data.export.manifest_sha256,
        "export_data_sha256": training_data.export.data_sha256,
        "code_version": mev.__version__,
        "xgboost": xgb.__version__,
        "spec": spec.model_dump(mode="json"),
        "params": dict(params),
        "seed": spec.seed,
        "device": used,
        "resumed_from": fitted.resumed_from,
        "environment": environment.describe(),
        **fitted.lineage,
    }
    if found:
        lineage["search"] = {
            "metric": found.metric,
            "trials": len(found.trials),
            "validation_used_for_choosing": True,
        }
    return lineage
