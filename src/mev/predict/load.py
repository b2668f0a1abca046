"""Loading a model that was registered: nothing of it is used before its signature, its digest and its features are found right."""

import os
import platform
import tempfile
from pathlib import Path

from mev.core.clock import now_ns
from mev.crypto.trust import TrustStore
from mev.predict import probe, vault
from mev.predict.engine import Engine
from mev.predict.errors import BadManifestError, MalformedModelError, WrongAbiError, WrongSchemaError
from mev.predict.manifest import ABI, Manifest, unseal
from mev.predict.native import Native
from mev.predict.predictor import Predictor, Scorer
from mev.wire.features import FEATURE_SCHEMAS


def read_manifest(folder: Path, model_id: str, trust: TrustStore, *, at_ns: int | None = None) -> Manifest:
    """Return what the manifest of a model in `folder` says, its signature checked.

    :raises ModelError: naming what is wrong with it.
    """
    manifest = unseal(vault.read(folder, f"{model_id}.manifest.json"), trust, now_ns() if at_ns is None else at_ns)
    if manifest.model_id != model_id:
        raise BadManifestError(f"the manifest of model {manifest.model_id} lies under the name of model {model_id}")
    return manifest


def load(path: Path, manifest: Manifest) -> Predictor:
    """Return the model in `path`, ``<sha256>.mevt`` or ``<sha256>.so`` beside its manifest, ready to score.

    A compiled one is copied where nobody else can write, and tried in another process before it is loaded here.

    :raises ModelError: naming what is wrong with it.
    """
    form = path.suffix.removeprefix(".")
    check_schema(manifest)
    content = vault.read_signed(path.parent, path.name, manifest.digest(form))
    if form == "so":
        scorer = _native(content, path.name, manifest)
    elif form == "mevt":
        scorer = Engine(content)
    else:
        raise MalformedModelError(f"{path.name} is in no form that scores; take .mevt or .so")
    if scorer.width != len(manifest.features):
        raise WrongSchemaError(f"the model has {scorer.width} features and its manifest {len(manifest.features)}")
    probe.difference(manifest.golden_scores, scorer.predict(manifest.golden_rows))
    return Predictor(scorer, model_id=manifest.model_id, digest=path.stem, features=manifest.features)


def check_schema(manifest: Manifest) -> None:
    """Check that the model was made for the features that are computed here.

    :raises WrongSchemaError: when it was not.
    """
    schema = FEATURE_SCHEMAS.get(manifest.feature_schema)
    if schema is None:
        raise WrongSchemaError(f"the model needs features of {manifest.feature_schema!r}; here there are {', '.join(FEATURE_SCHEMAS)}")
    if schema.hash != manifest.feature_schema_hash:
        raise WrongSchemaError(f"{schema.name} has hash {schema.hash} here, and {manifest.feature_schema_hash} where the model was trained")
    if unknown := sorted(set(manifest.features) - set(schema.names)):
        raise WrongSchemaError(f"{schema.name} has no feature {', '.join(unknown)}")


def _native(content: bytes, name: str, manifest: Manifest) -> Scorer:
    if manifest.abi != ABI:
        raise WrongAbiError(f"the model was compiled for interface {manifest.abi}; here it is {ABI}")
    if manifest.cpu != platform.machine():
        raise WrongAbiError(f"the model was compiled for {manifest.cpu}; this machine is {platform.machine()}")
    # The loader finds a library that is loaded already by its name: every load has a folder of its own, which only we can enter.
    with tempfile.TemporaryDirectory(prefix="mev-model-") as folder:
        copy = Path(folder, name)
        descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        probe.difference(manifest.golden_scores, probe.probe(copy, manifest.golden_rows, model_id=manifest.model_id))
        return Native(copy, width=len(manifest.features), model_id=manifest.model_id)
