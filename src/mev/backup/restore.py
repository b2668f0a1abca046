"""Restoring a backup: versions first, then keys, data and the audit trail."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from mev import __version__
from mev.audit.trusted import read_trusted, trusted_file
from mev.audit.verify import LogVerdict, verify_folder
from mev.backup.keys import decrypt
from mev.backup.make import copy_hashed
from mev.backup.manifest import (
    DATA,
    FILES,
    FORMAT,
    KEYS,
    MANIFEST,
    MANIFEST_JSON,
    BackupDamagedError,
    BackupManifest,
    places,
    release,
)
from mev.core.clock import now_ns
from mev.core.errors import ConflictError, NotFoundError
from mev.core.files import disk_full, sync_folder, write_atomically
from mev.settings import Settings
from mev.store.folder import RESTORING

_AUDIT = "audit"
_UNSIGNED_S = 1e9
"""For ever: the newest records may have been unsigned when the backup was made."""


def restore_backup(
    settings: Settings, source: Path, passphrase: str
) -> tuple[BackupManifest, list[LogVerdict]]:
    """Restore the backup `source` to the data folder, which must not exist or be empty.

    Nothing is in its place before every file was compared with the manifest and the audit trail was
    verified; until all is, no system starts on the folder.

    :raises NotFoundError: if there is no backup.
    :raises ConflictError: if the data folder is not empty, or a newer version made the backup.
    :raises PassphraseError: if the keys cannot be decrypted.
    :raises BackupDamagedError: naming the first file that is missing or differs.
    :raises DiskFullError: if there is no space.
    """
    manifest, text = _read_manifest(source)
    targets = places(settings)
    for place in {path.partition("/")[0] for path in manifest.files} - targets.keys():
        raise ConflictError(
            f"the backup contains the folder of {place!r}, which no setting names; set MODEL_DIR",
            code="restore_place_missing",
        )
    for target in targets.values():
        _check_empty(target)
    keys = decrypt(_read(source / KEYS), text, passphrase)
    partials = {place: target / RESTORING for place, target in targets.items()}
    created = [target for target in targets.values() if not target.exists()]
    try:
        for partial in partials.values():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True, mode=0o700)
        _write(manifest, keys, source / FILES, partials)
        verdicts = _verify(partials[DATA] / _AUDIT)
        os.sync()
    except BaseException as error:
        for partial in partials.values():
            shutil.rmtree(partial, ignore_errors=True)
        for target in created:
            target.rmdir()
        if isinstance(error, OSError) and (full := disk_full(error, settings.mev_data_dir)):
            raise full from None
        raise
    for place, target in targets.items():
        target.chmod(0o700)
        _move_up(partials[place], target)
    return manifest, verdicts


def _move_up(partial: Path, target: Path) -> None:
    """Move what was restored to its place; no system starts while there is `partial`."""
    for path in sorted(partial.iterdir()):
        path.rename(target / path.name)
    sync_folder(target)
    partial.rmdir()
    sync_folder(target)


def _read_manifest(source: Path) -> tuple[BackupManifest, bytes]:
    if not (source / MANIFEST).is_file():
        raise NotFoundError(f"{source} is not a backup: it has no {MANIFEST}", code="no_backup")
    text = _read(source / MANIFEST)
    try:
        manifest = MANIFEST_JSON.validate_json(text)
    except ValidationError:
        raise BackupDamagedError(f"{source / MANIFEST} is damaged") from None
    if manifest.format != FORMAT or release(manifest.version) > release(__version__):
        raise ConflictError(
            f"mev {manifest.version} made this backup, and this is {__version__}; install that"
            " version or a newer one to restore it",
            code="backup_too_new",
        )
    for path in (*manifest.folders, *manifest.files, *manifest.keys):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise BackupDamagedError(f"{source / MANIFEST} names {path!r}, outside of the backup")
    return manifest, text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BackupDamagedError(f"{path} is missing") from None


def _check_empty(target: Path) -> None:
    if target.exists() and any(path.name != RESTORING for path in target.iterdir()):
        raise ConflictError(
            f"{target} is not empty; move it away, or choose another folder with MEV_DATA_DIR",
            code="restore_target_not_empty",
        )


def _write(
    manifest: BackupManifest, keys: Mapping[str, bytes], files: Path, partials: Mapping[str, Path]
) -> None:
    def place_of(path: str) -> Path:
        place, _, below = path.partition("/")
        return partials[place] / below

    for path, mode in manifest.folders.items():
        place_of(path).mkdir(mode=mode)
    for path, entry in manifest.files.items():
        if entry.link is None:
            try:
                found = copy_hashed(files / path, place_of(path), entry.mode)
            except FileNotFoundError:
                raise BackupDamagedError(f"{files / path} is missing") from None
            if found != (entry.size, entry.sha256):
                raise BackupDamagedError(f"{files / path} is not as it was when it was saved")
    # Links last: nothing is written through one.
    for path, entry in manifest.files.items():
        if entry.link is not None:
            place_of(path).symlink_to(entry.link)
    for path, content in keys.items():
        write_atomically(place_of(path), content)


def _verify(audit: Path) -> list[LogVerdict]:
    """Verify the audit trail; a system that never started has none."""
    if not trusted_file(audit).is_file():
        return []
    trust = read_trusted(trusted_file(audit))
    verdicts = verify_folder(audit, trust, at_ns=now_ns(), unsigned_s=_UNSIGNED_S)
    for verdict in verdicts:
        if verdict.damage is not None:
            raise verdict.damage
    return verdicts
