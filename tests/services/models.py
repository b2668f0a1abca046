"""Fake models: files of arbitrary bytes with a signed manifest, for tests of deployment."""

import hashlib

import numpy as np

from mev.crypto.keys import SigningKey
from mev.registry.register import Trained, build
from mev.registry.registry import Registry, RegistryEntry
from mev.scoring.drift import Baseline
from mev.scoring.manifest import Manifest, Parity


def register_bytes(
    registry: Registry, name: str, key: SigningKey, *forms: str, baseline: bool = True
) -> str:
    """Register a model of its name's bytes, in `forms` besides the data-only one; return its id.

    It cannot be loaded.
    """
    files = {form: f"{name} {form}".encode() for form in ("ubj", "mevt", *forms)}
    digests = {form: hashlib.sha256(content).hexdigest() for form, content in files.items()}
    rows, scores = np.zeros((4, 1), np.float32), np.zeros(4, np.float32)
    manifest = Manifest(
        model_id=digests["ubj"],
        created_at="2026-01-01T00:00:00Z",
        objective="binary:logistic",
        features=("tip_share",),
        feature_schema="opportunity",
        feature_schema_hash="0" * 64,
        trees=1,
        mevt_sha256=digests["mevt"],
        so_sha256=digests.get("so"),
        cpu="x86_64",
        parity=Parity(rows=4, max_abs_diff=0.0),
        metrics={},
        lineage={},
        baseline=Baseline.of(rows, scores, ("tip_share",)) if baseline else None,
        golden_rows=rows,
        golden_scores=scores,
    )
    registry.add(manifest, files, key)
    return manifest.model_id


def register(
    registry: Registry, trained: Trained, *keys: SigningKey, compiled: bool = False
) -> RegistryEntry:
    """Build a model and register it, signed by `keys`."""
    made = build(trained, compiled=compiled)
    return registry.add(made.manifest, made.files, *keys)
