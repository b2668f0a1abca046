"""Safe reading of model files: by name in one folder, regular, owner-writable only."""

import errno
import hashlib
import os
import re
import stat
from pathlib import Path

from mev.scoring.errors import (
    BadModelDigestError,
    ModelMissingError,
    UnsafeModelFileError,
    UnsafeModelPathError,
)

_NAME = re.compile(r"[0-9a-f]{64}\.(mevt|so|ubj|manifest\.json)")
MAX_BYTES = 256 << 20
"""Largest model file; agents fetch no more either."""


def read(folder: Path, name: str) -> bytes:
    """Return the content of the file `name` in `folder`, read once.

    :raises UnsafeModelPathError: when `name` is not a model file name.
    :raises UnsafeModelFileError: when it is a link, not a regular file, too large, or writable by
        other users.
    :raises ModelMissingError: when it does not exist.
    """
    if not _NAME.fullmatch(name):
        raise UnsafeModelPathError(
            f"{name[:100]!r} is not the name of a model's file in MODEL_DIR: <sha256>.mevt, .so,"
            " .ubj or .manifest.json"
        )
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ModelMissingError(f"{folder}: {error.strerror}") from None
    try:
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeModelFileError(f"{name} is a symbolic link") from None
        raise ModelMissingError(f"{name}: {error.strerror}") from None
    finally:
        os.close(at)
    try:
        _check(name, os.fstat(descriptor))
    except UnsafeModelFileError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MAX_BYTES + 1)


def read_signed(folder: Path, name: str, sha256: str | None) -> bytes:
    """Return the content of the file `name` after a check against the signed digest.

    :raises BadModelDigestError: when the digest differs or none was signed.
    """
    if sha256 is None or not name.startswith(f"{sha256}."):
        raise BadModelDigestError(f"{name[:100]} is not a file that the model's manifest names")
    content = read(folder, name)
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise BadModelDigestError(f"{name} has SHA-256 {found}; it was changed or cut")
    return content


def _check(name: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeModelFileError(f"{name} is no plain file")
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeModelFileError(f"{name} belongs to another user, or others may write it")
    if status.st_nlink != 1:
        raise UnsafeModelFileError(f"{name} has a second name")
    if status.st_size > MAX_BYTES:
        raise UnsafeModelFileError(f"{name} has {status.st_size} bytes; {MAX_BYTES} are allowed")
