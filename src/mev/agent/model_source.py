"""Loading of models: find or download the file of a swap, verify and load it."""

import hashlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mev.agent.refusal import UnsupportedCommandError
from mev.core.files import write_atomically
from mev.crypto.envelope import MAX_ENVELOPE_BYTES
from mev.crypto.trust import TrustStore
from mev.scoring.drift import Baseline
from mev.scoring.errors import (
    BadManifestError,
    BadModelDigestError,
    ModelError,
    ModelMissingError,
    UnsafeModelPathError,
    UnsignedManifestError,
    WrongSchemaError,
)
from mev.scoring.load import load, read_manifest
from mev.scoring.manifest import Manifest, unseal
from mev.scoring.predictor import Predictor
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.control_pb2 import SwapModel

Fetch = Callable[[str, str, int], bytes]
"""Downloads a model file, given the model id, the file name and the maximum size."""
_NAME = re.compile(r"[0-9a-f]{64}\.(mevt|so)")
_MANIFEST_BYTES = 2 * MAX_ENVELOPE_BYTES
_MODEL_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A loaded model, and its training distribution for drift detection."""

    predictor: Predictor
    baseline: Baseline | None = None


class ModelSource(Protocol):
    """Loader of the models of swaps; a bot with another model format implements its own."""

    def load(self, swap: SwapModel, trust: TrustStore, at_ns: int) -> Loaded:
        """Return the verified model of `swap`; called in a thread.

        :raises MevError: with the reason code for the agent's answer.
        """


class ModelFolder:
    """Models in the folder `path`.

    Missing files are downloaded with `fetch`, except native code.
    """

    def __init__(self, path: Path | None, fetch: Fetch | None = None) -> None:
        self._path = path
        self._fetch = fetch
        self._writing = threading.Lock()

    def load(self, swap: SwapModel, trust: TrustStore, at_ns: int) -> Loaded:
        """Return the model that `swap` names.

        :raises UnsupportedError: when the agent has no model folder.
        :raises ModelError: when the file or its manifest is invalid.
        """
        if self._path is None:
            raise UnsupportedCommandError("this agent has no folder of models")
        if not _NAME.fullmatch(swap.model_path):
            raise UnsafeModelPathError(
                f"{swap.model_path[:100]!r} is not the name of a model's file: <sha256>.mevt "
                "or <sha256>.so"
            )
        manifest = self._manifest(self._path, swap.model_id, trust, at_ns)
        path = self._path / swap.model_path
        if swap.sha256 and swap.sha256.hex() != path.stem:
            raise BadModelDigestError(
                f"{path.name} is not the file that was ordered: {swap.sha256.hex()}"
            )
        if manifest.feature_schema != OPPORTUNITY.name:
            raise WrongSchemaError(
                f"the model needs features of {manifest.feature_schema!r}; opportunities have "
                f"{OPPORTUNITY.name}"
            )
        if path.suffix == ".mevt" and self._fetch is not None and not os.path.lexists(path):
            self._keep(path, self._fetched(self._fetch, path.name, manifest))
        return Loaded(predictor=load(path, manifest), baseline=manifest.baseline)

    def _manifest(self, folder: Path, model_id: str, trust: TrustStore, at_ns: int) -> Manifest:
        try:
            return read_manifest(folder, model_id, trust, at_ns=at_ns)
        # A manifest signed before a key rotation may have been signed again.
        except (ModelMissingError, UnsignedManifestError) as error:
            if self._fetch is None:
                raise
            reason: ModelError = error
        path = folder / f"{model_id}.manifest.json"
        try:
            content = self._fetch(model_id, path.name, _MANIFEST_BYTES)
        except ModelMissingError as error:
            raise type(reason)(f"{reason.detail}; {error.detail}") from None
        if (manifest := unseal(content, trust, at_ns)).model_id != model_id:
            raise BadManifestError(
                f"the manifest of model {manifest.model_id} was given for model {model_id}"
            )
        self._keep(path, content)
        return manifest

    @staticmethod
    def _fetched(fetch: Fetch, name: str, manifest: Manifest) -> bytes:
        content = fetch(manifest.model_id, name, _MODEL_BYTES)
        if (found := hashlib.sha256(content).hexdigest()) != name.partition(".")[0]:
            raise BadModelDigestError(f"{name} came from the control plane with SHA-256 {found}")
        return content

    def _keep(self, path: Path, content: bytes) -> None:
        with self._writing:
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_atomically(path, content)
                path.chmod(0o400)
            except OSError as error:
                raise ModelMissingError(f"{path} cannot be written: {error.strerror}") from None
