"""From a trained booster to a registered model: its forms are made, compared with XGBoost on frozen rows, signed and kept."""

import hashlib
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xgboost as xgb

from mev.core.errors import InvalidInputError
from mev.crypto.envelope import Signer
from mev.models.compile import compile_model
from mev.models.errors import UnsupportedModelError
from mev.models.pack import pack
from mev.models.registry import Entry, Registry, check_size
from mev.predict import probe
from mev.predict.drift import Baseline
from mev.predict.manifest import Manifest, Parity
from mev.predict.predictor import Rows, Scores
from mev.wire.features import FeatureSchema

GOLDEN_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training hands over; `frozen_rows` are rows that it held back, in the order of `features`."""

    booster: xgb.Booster
    features: tuple[str, ...]
    schema: FeatureSchema
    frozen_rows: Rows
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]


def register(registry: Registry, trained: Trained, *keys: Signer, compiled: bool = False) -> Entry:
    """Make the data-only form and, when `compiled` or where there is no such form, the compiled one; compare them, sign, keep.

    :raises UnsupportedModelError: when the model has no form that scores.
    :raises ModelTooLargeError: when agents would refuse a file for its size; nothing is kept then.
    :raises ParityError: when a form does not score the frozen rows as XGBoost does; nothing is kept then.
    """
    if not len(trained.frozen_rows):
        raise InvalidInputError("a model is compared on frozen rows, and there are none")
    ubj = bytes(trained.booster.save_raw("ubj"))
    check_size("ubj", len(ubj))  # before the forms are made, which takes its time
    model_id = hashlib.sha256(ubj).hexdigest()
    booster = xgb.Booster(model_file=bytearray(ubj))  # what was saved, not what is in memory, is what agents get
    forms = _forms(booster, model_id, compiled=compiled)
    rows = _with_missing(trained.frozen_rows)
    scores = score(booster, rows)
    worst = max(_compare(form, content, model_id, rows, scores) for form, content in forms.items())
    digests = {form: hashlib.sha256(content).hexdigest() for form, content in forms.items()}
    # Half of the golden rows lack something: rows that lack nothing would not find a form that takes missing ones for numbers.
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
        # Of the rows as they were: the holes made above would pass for what agents see.
        baseline=Baseline.of(trained.frozen_rows, scores[: len(trained.frozen_rows)], trained.features),
        golden_rows=rows[golden],
        golden_scores=scores[golden],
    )
    return registry.add(manifest, {"ubj": ubj, **forms}, *keys)


def score(booster: xgb.Booster, rows: Rows) -> Scores:
    """Return XGBoost's scores of `rows`."""
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
    """Return `rows`, and each of them a second time with every third number missing, another third from row to row."""
    holes = rows.copy()
    holes[(np.arange(len(rows))[:, None] + np.arange(rows.shape[1])) % 3 == 0] = np.nan
    return np.concatenate([rows, holes])


def _compare(form: str, content: bytes, model_id: str, rows: Rows, scores: Scores) -> float:
    with tempfile.TemporaryDirectory(prefix="mev-parity-") as folder:
        path = Path(folder, f"model.{form}")
        path.write_bytes(content)
        return probe.difference(scores, probe.probe(path, rows, model_id=model_id))


def _objective(booster: xgb.Booster) -> str:
    return str(orjson.loads(booster.save_config())["learner"]["objective"]["name"])
