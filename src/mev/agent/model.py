"""The place for a model: which file a swap names, whether it is the one that was signed, and what would load it."""

import hashlib
from pathlib import Path
from typing import Protocol

from mev.agent.refusal import BadDigestError, UnsafePathError, UnsupportedError
from mev.wire.pb.control_pb2 import SwapModel


class ModelSlot(Protocol):
    """Whatever can take a model while the agent runs."""

    def swap(self, path: Path, swap: SwapModel) -> str:
        """Use the model in `path`, which has the signed digest; return a line for the answer."""


class ModelFolder:
    """The folder below which every model lies."""

    def __init__(self, path: Path | None, slot: ModelSlot | None = None) -> None:
        self._path = path
        self.slot = slot

    def find(self, swap: SwapModel) -> Path:
        """Return the file that `swap` names, its digest checked.

        :raises UnsafePathError: when the path leads out of the folder, through a link too.
        :raises BadDigestError: when there is no such file, or another one.
        :raises UnsupportedError: when the agent has no folder of models.
        """
        if self._path is None:
            raise UnsupportedError("this agent has no folder of models")
        folder = self._path.resolve()
        try:
            path = (folder / swap.model_path).resolve()
        except (OSError, ValueError, RuntimeError):
            raise UnsafePathError(f"{swap.model_path!r} is no path") from None
        if folder not in path.parents:
            raise UnsafePathError(f"{swap.model_path!r} is not below the folder of models")
        if swap.sha256:
            _check_digest(path, swap)
        return path


def _check_digest(path: Path, swap: SwapModel) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise BadDigestError(f"{swap.model_path}: {error.strerror}") from None
    if found != swap.sha256:
        raise BadDigestError(f"{swap.model_path} has SHA-256 {found.hex()}, {swap.sha256.hex()} was signed")
