"""One training, from the folder of an export to a folder with the model, its figures and its pictures.

A plain function: whoever calls it decides in which process. The same export, request and seed give the same model.
"""

import hashlib
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
from mev.predict.predictor import Rows as Table
from mev.training import device, environment, plots, rows, score
from mev.training.check import Counts
from mev.training.fit import CHECKPOINT, Fitted, Report, fit, key_of
from mev.training.goals import Objective
from mev.training.rows import Material
from mev.training.search import TRIALS, Found, require, search
from mev.training.spec import Device, TrainSpec, parse

if TYPE_CHECKING:
    from mev.training.cluster import Cluster

RESULT, MODEL = "result.json", "model.ubj"


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


def run(spec: Mapping[str, Any], export_folder: Path, output: Path, report: Report, *, work: Path | None = None) -> Result:
    """Train on the export in `export_folder` and write the model, ``result.json`` and pictures into `output`.

    Checkpoints go to `work` (`output`, without one): a later call with the same arguments goes on from the last.

    :raises MevError: naming what is wrong with the request or the rows.
    :raises CancelledJobError: when `report` says that it is not wanted any longer.
    """
    work = work or output
    asked = parse(spec)
    if asked.search:
        require()
    with _cluster(asked) as cluster:
        used = device.choose(Device.CPU if cluster else asked.device)
        report.progress(0, asked.rounds, "reading")
        material = rows.prepare(export_folder, asked)
        if report.is_cancelled():
            raise CancelledJobError
        params = _params(asked, material.counts, used)
        key = key_of(asked, material.export, used)
        if cluster:
            fitted, found = cluster.fit(asked, params, material, work, key, report), None
        else:
            fitted, found = _fit(asked, params, material, work, key, report)
    report.progress(asked.rounds, asked.rounds, "validating")
    result = _result(asked, material, fitted, found, params, used, output)
    for name in (CHECKPOINT, TRIALS):
        (work / name).unlink(missing_ok=True)
    return result


@contextmanager
def _cluster(spec: TrainSpec) -> "Iterator[Cluster | None]":
    if spec.distributed is None:
        yield None
        return
    from mev.training.cluster import connected  # noqa: PLC0415 - needs an extra

    with connected(spec.distributed) as cluster:
        yield cluster


def _params(spec: TrainSpec, counts: Counts, used: str) -> dict[str, Any]:
    params = spec.params.model_dump() | {"tree_method": "hist", "device": used, "seed": spec.seed, "nthread": environment.threads()}
    if spec.class_weight is not None and spec.objective is Objective.BINARY:
        balanced = (counts.train - counts.train_positive) / counts.train_positive
        params["scale_pos_weight"] = balanced if spec.class_weight == "balanced" else spec.class_weight
    return params


def _fit(spec: TrainSpec, params: dict[str, Any], material: Material, work: Path, key: str, report: Report) -> tuple[Fitted, Found | None]:
    train, validation = rows.matrices(material, spec.params.max_bin)
    found = search(spec, spec.search, params, train, validation, work, key, report) if spec.search else None
    if found:
        params.update(found.best.params)
    return fit(spec, params, train, validation, work, key, report), found


def _result(
    spec: TrainSpec, material: Material, fitted: Fitted, found: Found | None, params: Mapping[str, Any], used: str, output: Path
) -> Result:
    scored = score.score(material, fitted.booster)
    importance = score.importance(fitted.booster, material.features, scored.frozen)
    figures = score.judge(spec.objective, material, scored, output)
    plots.learning(output / "learning.png", fitted.metric, fitted.history, fitted.best_round)
    plots.importance(output / "importance.png", importance)
    model = bytes(fitted.booster.save_raw("ubj"))
    write_atomically(output / MODEL, model)
    cut, counts = material.cut, material.counts
    counted = {
        "cutoff_slot": cut.cutoff_slot,
        "train": counts.train,
        "embargo": cut.embargoed,
        "validation": counts.validation,
        "simulated": counts.simulated,
    }
    lineage = _lineage(spec, material, fitted, found, params, used) | {"rows": counted, "importance": importance}
    content = {
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "features": material.features,
        "target": spec.target,
        "metrics": figures,
        "importance": importance,
        "rows": counted,
        "rounds": len(fitted.history),
        "best_round": fitted.best_round,
        "history": {fitted.metric: fitted.history},
        "lineage": lineage,
    }
    if found:
        content["search"] = found.document()
    if material.grading:
        content["grades"] = {"edges": material.grading.edges}
    write_atomically(output / RESULT, orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return Result(
        booster=fitted.booster,
        features=material.features,
        feature_schema=material.export.feature_schema,
        feature_schema_hash=material.export.feature_schema_hash,
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
    spec: TrainSpec, material: Material, fitted: Fitted, found: Found | None, params: Mapping[str, Any], used: str
) -> dict[str, Any]:
    lineage = {
        "export_manifest_sha256": material.export.manifest_sha256,
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
        lineage["search"] = {"metric": found.metric, "trials": len(found.trials), "validation_used_for_choosing": True}
    return lineage
