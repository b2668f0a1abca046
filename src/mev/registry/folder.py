"""Folder of a registry: model files by digest, plots, and ``registry.json``.

The manifest of a model is written last and makes it exist. Any number of processes may read;
writers take a lock.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from mev.core.files import disk_full, write_atomically
from mev.registry.manifest_cache import MANIFEST

_STATE = "registry.json"
_PLOTS = "plots"
PLOT = re.compile(r"[a-z][a-z0-9_]{0,63}\.(png|svg)")
"""File name of a plot."""
MAX_PLOT_BYTES = 4 << 20
MODEL_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class RegistryState:
    """Aliases and times of archiving, by alias and model id.

    `copy_of` is the object store from which they were copied, empty if this folder is the original.
    """

    aliases: dict[str, str] = field(default_factory=dict)
    archived: dict[str, str] = field(default_factory=dict)
    copy_of: str = ""


class RegistryFolder:
    """The folder `path`; it is created with its first file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_state(self) -> RegistryState:
        """Return the aliases and archived models."""
        try:
            content: dict[str, Any] = orjson.loads((self.path / _STATE).read_bytes())
        except FileNotFoundError:
            return RegistryState()
        return RegistryState(content["aliases"], content["archived"], content.get("copy_of", ""))

    def write_state(self, state: RegistryState) -> None:
        """Replace the aliases and archived models, under the lock."""
        content: dict[str, Any] = {"aliases": state.aliases, "archived": state.archived}
        if state.copy_of:
            content["copy_of"] = state.copy_of
        write_atomically(
            self.path / _STATE,
            orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS),
        )

    def model_ids(self) -> list[str]:
        """Return the ids of the models that have a manifest here."""
        names = (path.name.removesuffix(MANIFEST) for path in self.path.glob(f"*{MANIFEST}"))
        return sorted(name for name in names if MODEL_ID.fullmatch(name))

    def has(self, name: str) -> bool:
        """Return whether a file exists."""
        return (self.path / name).exists()

    def sha256(self, name: str) -> str | None:
        """Return the digest of a file, or None if it does not exist."""
        try:
            return hashlib.sha256((self.path / name).read_bytes()).hexdigest()
        except FileNotFoundError:
            return None

    def keep(self, name: str, content: bytes) -> None:
        """Write a file unless it exists: it may be in use."""
        if not self.has(name):
            self.put(name, content)

    def put(self, name: str, content: bytes) -> None:
        """Write a file.

        :raises DiskFullError: when the disk is full.
        """
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, content)
            path.chmod(0o400)
        except OSError as error:
            if (full := disk_full(error, path)) is not None:
                raise full from None
            raise

    def keep_plots(self, model_id: str, plots: Mapping[str, bytes]) -> None:
        """Write the plots of a model unless they exist."""
        for name, content in plots.items():
            self.keep(f"{_PLOTS}/{model_id}/{name}", content)

    def plots(self, model_id: str) -> dict[str, bytes]:
        """Return the plots of a model, by file name."""
        return {
            path.name: path.read_bytes()
            for path in sorted((self.path / _PLOTS / model_id).glob("*"))
            if PLOT.fullmatch(path.name)
        }

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writers' lock."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path / ".lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
