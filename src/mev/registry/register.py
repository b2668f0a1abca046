"""Build a registrable model from a booster: make its forms and compare them with XGBoost."""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import xgboost as xgb

from mev.core.errors import InvalidInputError
from mev.registry.candidate import GOLDEN_ROWS, Candidate
from mev.registry.compile import compile_model
from mev.registry.errors import UnsupportedModelError
from mev.registry.file_checks import check_size
from mev.registry.pack import pack
from mev.scoring import probe
from mev.scoring.drift import Baseline
from mev.scoring.manifest import Manifest, Parity
from mev.scoring.predictor import Rows, Scores
from mev.wire.features import FeatureSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Output of a training run.

    `frozen_rows` are held-out rows in the order of `features`.
    """

    booster: xgb.Booster
    features: tuple[str, ...]
    schema: FeatureSchema
    frozen_rows: Rows
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]


def build(trained: Trained, *, compiled: bool = False) -> Candidate:
    """Return the model with its data-only form, its compiled form, or both.

    The compiled form is built when `compiled`, or where the data-only form does not support the
    model. Each form is compared with XGBoost.

    :raises UnsupportedModelError: when the model has no form that scores.
    :raises ModelTooLargeError: when a file is larger than agents accept.
    :raises ParityError: when a form does not score the frozen rows as XGBoost does.
    """
    if not len(trained.frozen_rows):
        raise InvalidInputError("a model is compared on frozen rows, and there are none")
    ubj = bytes(trained.booster.save_raw("ubj"))
    check_size("ubj", len(ubj))  # before the slow conversion
    model_id = hashlib.sha256(ubj).hexdigest()
    # agents get the saved model, so that is the one to compare
    booster = xgb.Booster(model_file=bytearray(ubj))
    forms = _forms(booster, model_id, compiled=compiled)
    rows = _with_missing(trained.frozen_rows)
    scores = score(booster, rows)
    worst = max(_compare(form, content, model_id, rows, scores) for form, content in forms.items())
    digests = {form: hashlib.sha256(content).hexdigest() for form, content in forms.items()}
    # Half of the golden rows have missing values, to test how a form handles them.
    golden = np.linspace(0, len(rows) - 1, min(GOLDEN_ROWS, len(rows))).astype(int)
    manifest = Manifest(
        model_id=model_id,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        objective=_objective(booster),
        features=trained.features,
        feature_schema=trained.schema.name,
        feature_schema_hash=trained.schema.hash,
        trees=booster.num_boosted_rounds(),
        mevt_sha256=digests.get("mevt"),
        so_sha256=digests.get("so"),
        cpu=platform.machine(),
        parity=Parity(rows=len(rows), max_abs_diff=worst),
        metrics=trained.metrics,
        lineage=trained.lineage,
        # Computed on the original rows, without the missing values added above.
        baseline=Baseline.of(
            trained.frozen_rows, scores[: len(trained.frozen_rows)], trained.features
        ),
        golden_rows=rows[golden],
        golden_scores=scores[golden],
    )
    return Candidate(manifest=manifest, files={"ubj": ubj, **forms})


def score(booster: xgb.Booster, rows: Rows) -> Scores:
    """Return the scores XGBoost gives `rows`."""
    return np.asarray(booster.inplace_predict(rows, missing=np.nan), np.float32)


def _forms(booster: xgb.Booster, model_id: str, *, compiled: bool) -> dict[str, bytes]:
    forms = {}
    try:
        forms["mevt"] = pack(booster)
        check_size("mevt", len(forms["mevt"]))
    except UnsupportedModelError:
        compiled = True
    if compiled:
        forms["so"] = compile_model(booster, model_id)
    return forms


def _with_missing(rows: Rows) -> Rows:
    """Return `rows` followed by a copy with every third value missing, shifted per row."""
    holes = rows.copy()
    holes[(np.arange(len(rows))[:, None] + np.arange(rows.shape[1])) % 3 == 0] = np.nan
    return np.concatenate([rows, holes])


def _compare(form: str, content: bytes, model_id: str, rows: Rows, scores: Scores) -> float:
    return probe.difference(scores, probe.probe(content, form, rows, model_id=model_id))


def _objective(booster: xgb.Booster) -> str:
    return str(orjson.loads(booster.save_config())["learner"]["objective"]["name"])
