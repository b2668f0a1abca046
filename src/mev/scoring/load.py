"""Loading of registered models, after checks of signature, digest and features."""

import os
import platform
import tempfile
from pathlib import Path

from mev.core.clock import now_ns
from mev.crypto.trust import TrustStore
from mev.scoring import model_files, probe
from mev.scoring.compiled import CompiledModel
from mev.scoring.errors import (
    BadManifestError,
    MalformedModelError,
    WrongAbiError,
    WrongSchemaError,
)
from mev.scoring.manifest import ABI, Manifest, unseal
from mev.scoring.native_engine import open_model
from mev.scoring.predictor import Predictor, Scorer
from mev.wire.features import FEATURE_SCHEMAS


def read_manifest(
    folder: Path, model_id: str, trust: TrustStore, *, at_ns: int | None = None
) -> Manifest:
    """Return the verified manifest of a model in `folder`.

    :raises ModelError: naming what is wrong with it.
    """
    manifest = unseal(
        model_files.read(folder, f"{model_id}.manifest.json"),
        trust,
        now_ns() if at_ns is None else at_ns,
    )
    if manifest.model_id != model_id:
        raise BadManifestError(
            f"the manifest of model {manifest.model_id} lies under the name of model {model_id}"
        )
    return manifest


def load(path: Path, manifest: Manifest) -> Predictor:
    """Return the predictor for `path`, ``<sha256>.mevt`` or ``<sha256>.so``.

    A compiled model is copied to a private folder and probed in another process before it is
    loaded.

    :raises ModelError: naming what is wrong with it.
    """
    form = path.suffix.removeprefix(".")
    check_schema(manifest)
    content = model_files.read_signed(path.parent, path.name, manifest.digest(form))
    if form == "so":
        scorer = _native(content, path.name, manifest)
    elif form == "mevt":
        scorer = open_model(content)
    else:
        raise MalformedModelError(f"{path.name} is in no form that scores; take .mevt or .so")
    if scorer.width != len(manifest.features):
        raise WrongSchemaError(
            f"the model has {scorer.width} features and its manifest {len(manifest.features)}"
        )
    probe.difference(manifest.golden_scores, scorer.predict(manifest.golden_rows))
    return Predictor(
        scorer, model_id=manifest.model_id, digest=path.stem, features=manifest.features
    )


def check_schema(manifest: Manifest) -> None:
    """Check that the model's feature schema is the one computed here.

    :raises WrongSchemaError: when it is not.
    """
    schema = FEATURE_SCHEMAS.get(manifest.feature_schema)
    if schema is None:
        raise WrongSchemaError(
            f"the model needs features of {manifest.feature_schema!r}; here there are"
            f" {', '.join(FEATURE_SCHEMAS)}"
        )
    if schema.hash != manifest.feature_schema_hash:
        raise WrongSchemaError(
            f"{schema.name} has hash {schema.hash} here, and {manifest.feature_schema_hash} where"
            " the model was trained"
        )
    if unknown := sorted(set(manifest.features) - set(schema.names)):
        raise WrongSchemaError(f"{schema.name} has no feature {', '.join(unknown)}")


def _native(content: bytes, name: str, manifest: Manifest) -> Scorer:
    if manifest.abi != ABI:
        raise WrongAbiError(
            f"the model was compiled for interface {manifest.abi}; here it is {ABI}"
        )
    if manifest.cpu != platform.machine():
        raise WrongAbiError(
            f"the model was compiled for {manifest.cpu}; this machine is {platform.machine()}"
        )
    # The loader caches libraries by path, so every load uses its own private folder.
    with tempfile.TemporaryDirectory(prefix="mev-model-") as folder:
        copy = Path(folder, name)
        descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        probe.difference(
            manifest.golden_scores,
            probe.probe(content, "so", manifest.golden_rows, model_id=manifest.model_id),
        )
        return CompiledModel(copy, width=len(manifest.features), model_id=manifest.model_id)
