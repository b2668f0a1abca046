"""Making a backup."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from mev import __version__
from mev.backup.keys import encrypt
from mev.backup.manifest import (
    DATA,
    FILES,
    FORMAT,
    KEYS,
    MANIFEST,
    MANIFEST_JSON,
    BackupManifest,
    FileEntry,
    is_key,
    is_left_out,
    places,
)
from mev.core.errors import ConflictError, NotFoundError
from mev.core.files import disk_full, sync_folder, write_atomically
from mev.settings import Settings
from mev.store.boot import locked_folder

_CHUNK_BYTES = 1 << 20


def make_backup(settings: Settings, target: Path, passphrase: str) -> BackupManifest:
    """Write a backup of the stopped system to the new folder `target`; return its manifest.

    The folder appears when it is complete and on the disk.

    :raises NotFoundError: if there is no data folder.
    :raises ConflictError: if a system runs on it, or `target` exists.
    :raises DiskFullError: if there is no space.
    """
    if not settings.mev_data_dir.is_dir():
        raise NotFoundError(
            f"there is no data folder {settings.mev_data_dir}; name it with MEV_DATA_DIR",
            code="no_data_folder",
        )
    if target.exists():
        raise ConflictError(
            f"{target} exists; choose a new folder for this backup", code="backup_exists"
        )
    partial = target.with_name(f"{target.name}.partial")
    with locked_folder(settings):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(mode=0o700)
            manifest = _copy(settings, partial, passphrase)
            os.sync()
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise (disk_full(error, partial) or error) from None
    sync_folder(target.parent)
    return manifest


def copy_hashed(source: Path, target: Path, mode: int) -> tuple[int, str]:
    """Copy a file; return its size and the SHA-256 of what was copied."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
        os.fchmod(writer.fileno(), mode)
    return size, digest.hexdigest()


def _copy(settings: Settings, partial: Path, passphrase: str) -> BackupManifest:
    folders: dict[str, int] = {}
    files: dict[str, FileEntry] = {}
    keys: dict[str, bytes] = {}
    for place, root in places(settings).items():
        for source, status in _below(root, is_data=place == DATA):
            path = f"{place}/{source.relative_to(root)}"
            target, mode = partial / FILES / path, stat.S_IMODE(status.st_mode)
            if stat.S_ISDIR(status.st_mode):
                target.mkdir(parents=True)
                folders[path] = mode
            elif stat.S_ISLNK(status.st_mode):
                files[path] = FileEntry(mode=mode, link=str(source.readlink()))
            elif is_key(source.name):
                keys[path] = source.read_bytes()
            elif stat.S_ISREG(status.st_mode):
                target.parent.mkdir(parents=True, exist_ok=True)
                size, digest = copy_hashed(source, target, mode)
                files[path] = FileEntry(mode=mode, size=size, sha256=digest)
    manifest = BackupManifest(
        format=FORMAT,
        version=__version__,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        embedded=list(settings.embedded),
        folders=folders,
        files=files,
        keys=sorted(keys),
    )
    text = MANIFEST_JSON.dump_json(manifest, indent=1)
    write_atomically(partial / MANIFEST, text)
    write_atomically(partial / KEYS, encrypt(keys, text, passphrase))
    return manifest


def _below(root: Path, *, is_data: bool) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what is below `root`, each folder before its contents."""
    for path in sorted(root.rglob("*")):
        if not (is_data and is_left_out(path.relative_to(root))):
            yield path, path.lstat()
