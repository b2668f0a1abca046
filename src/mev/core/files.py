"""Crash-safe file writes, and detection of a full disk."""

import errno
import os
import secrets
import shutil
from pathlib import Path

from mev.core.errors import MevError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DiskFullError(MevError):
    """The disk is full."""

    code = "disk_full"
    status = 507


def disk_full(error: Exception, place: Path | None = None) -> DiskFullError | None:
    """Return a `DiskFullError` if `error` means a full disk, a quota or a file size limit.

    `place` is the path to report when `error` names no file.
    """
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return None
    path = error.filename or place or "a file"
    return DiskFullError(
        f"{path} cannot be written: {error.strerror}; free space on that disk, then try again",
        path=str(path),
    )


def free_bytes(folder: Path) -> int:
    """Return the bytes available below `folder`, which may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def write_atomically(
    path: Path, content: bytes, *, mode: int = 0o600, durable: bool = True
) -> None:
    """Write `content` to `path` atomically: readers see either the old or the new content.

    The same holds after a crash. The mode is owner-only unless `mode` says otherwise. Without
    `durable`, a crash of the machine may leave the old content or an empty file.

    :raises OSError: naming `path`; the old content is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)  # frees its space if the disk is full
        raise OSError(error.errno, error.strerror, str(path)) from None
    if durable:
        sync_folder(path.parent)


def secret(path: Path) -> str:
    """Return the secret in the file `path`; create it, readable by its owner only, if missing."""
    if not path.exists():
        write_atomically(path, secrets.token_urlsafe(32).encode())
    return path.read_text().strip()


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
