"""The manifest of a backup, its places, and its errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from pydantic import TypeAdapter

from mev.core.errors import InvalidInputError, MevError
from mev.settings import Settings

FORMAT = 1
MANIFEST, KEYS, FILES = "manifest.json", "keys.json", "files"
"""Names in the folder of a backup."""
DATA = "data"
_MODELS = "models"
_KEY_NAMES = ("*-key", "*-password", "*.pem")
_LEFT_OUT = ("__cache__", "agents", "workers", "lock", "runtime.json", "login.json")
"""At the top of the data folder: caches, sockets, the login of a person; and the folders of agents,
which other processes write, and whose accepted versions must not go back."""


class BackupDamagedError(MevError):
    """The backup is damaged or incomplete."""

    code = "backup_damaged"
    status = 409


class PassphraseError(InvalidInputError):
    """The keys of the backup cannot be decrypted."""

    code = "wrong_passphrase"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of a backup, or a symbolic link where `link` is its target."""

    mode: int
    size: int = 0
    sha256: str = ""
    link: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupManifest:
    """Contents of a backup; paths begin with the name of their place."""

    format: int
    version: str
    created_at: str
    embedded: list[str]
    """Services whose data is part of the backup."""
    folders: dict[str, int]
    """Modes of the folders."""
    files: dict[str, FileEntry]
    keys: list[str]
    """Files that are encrypted instead."""


MANIFEST_JSON = TypeAdapter(BackupManifest)


def places(settings: Settings) -> Mapping[str, Path]:
    """Return the folders that a backup contains, by name."""
    found = {DATA: settings.mev_data_dir}
    models = settings.model_dir
    if models is not None and not models.is_relative_to(settings.mev_data_dir):
        found[_MODELS] = models
    return found


def is_left_out(path: Path) -> bool:
    """Return whether a path below the data folder is not part of a backup."""
    return path.parts[0] in _LEFT_OUT


def is_key(name: str) -> bool:
    """Return whether a file of this name is key material, or what a killed process left of one."""
    return any(fnmatch(name, form) for key in _KEY_NAMES for form in (key, f".{key}.*"))


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, for comparisons."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
