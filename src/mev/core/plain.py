"""Reading files written by an untrusted process: regular files of one folder, bounded in size.

Links are refused. Each file is opened once, then checked and read through that descriptor: a
running process cannot replace it between the check and the read.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mev.core.errors import MevError

_CHUNK = 1 << 20


class UnsafeFileError(MevError):
    """A file is a link, not a regular file, or too large."""

    code = "unsafe_file"


def read(folder: Path, name: str, max_bytes: int) -> bytes:
    """Return the content of the regular file `name` in `folder`.

    :raises UnsafeFileError: when it is no regular file, has another hard link, or is larger than
        `max_bytes`.
    :raises FileNotFoundError: when it does not exist.
    """
    with _opened(folder) as at, _plain(at, folder, name) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UnsafeFileError(f"{folder / name} is larger than {max_bytes} bytes")
    return content


def copy_all(source: Path, target: Path, *, max_files: int, max_bytes: int) -> None:
    """Replace the folder `target` by copies of the files in `source`.

    At most `max_files` files with `max_bytes` in total are copied.

    :raises UnsafeFileError: when one is no regular file, or a limit is exceeded.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    left = max_bytes
    with _opened(source) as at:
        names = [entry.name for entry in os.scandir(at)]
        if len(names) > max_files:
            raise UnsafeFileError(f"{source} has {len(names)} files; {max_files} are allowed")
        for name in sorted(names):
            with _plain(at, source, name) as file, (target / name).open("xb") as copy:
                while chunk := file.read(_CHUNK):
                    if (left := left - len(chunk)) < 0:
                        raise UnsafeFileError(
                            f"the files in {source} are larger than {max_bytes} bytes together"
                        )
                    copy.write(chunk)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise UnsafeFileError(f"{folder} is no folder") from None
    try:
        yield at
    finally:
        os.close(at)


@contextmanager
def _plain(at: int, folder: Path, name: str) -> Iterator[BinaryIO]:
    """Open the regular file `name` in the folder of the descriptor `at`.

    A file with another hard link is refused.
    """
    shown = f"{folder}/{name[:200]!r}"
    try:
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = (
            "is a symbolic link"
            if error.errno == errno.ELOOP
            else f"cannot be read: {error.strerror}"
        )
        raise UnsafeFileError(f"{shown} {reason}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        reason = (
            "has a second name (a hard link)"
            if stat.S_ISREG(status.st_mode)
            else "is no plain file"
        )
        raise UnsafeFileError(f"{shown} {reason}")
    with os.fdopen(descriptor, "rb") as file:
        yield file
