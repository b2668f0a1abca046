"""Committed offsets of consumer groups, in an append-only file with compaction."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

_COMPACT_BYTES = 1 << 20
Committed = tuple[int, str | None]


class CommittedOffsets:
    """The last committed offset and metadata of each group, by topic and partition."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[str, dict[tuple[str, int], Committed]] = {}
        self._load()
        self._file = self._write_again()

    @property
    def groups(self) -> int:
        """Number of groups with commits."""
        return len(self._offsets)

    def has(self, group: str) -> bool:
        """Return whether `group` has commits."""
        return group in self._offsets

    def get(self, group: str, topic: str, partition: int) -> Committed | None:
        """Return the last commit of `group`, or None."""
        return self._offsets.get(group, {}).get((topic, partition))

    def of_group(self, group: str) -> list[tuple[str, int]]:
        """Return the partitions with commits of `group`."""
        return list(self._offsets.get(group, {}))

    def put(self, group: str, offsets: dict[tuple[str, int], Committed]) -> None:
        """Store `offsets`.

        :raises OSError: when they cannot be written; they are not stored then.
        """
        if not offsets:
            return
        lines = _lines(group, offsets)
        if os.write(self._file, lines) < len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._offsets.setdefault(group, {}).update(offsets)
        if os.fstat(self._file).st_size > max(_COMPACT_BYTES, 2 * self._compacted_bytes):
            with suppress(OSError):  # the commit is in the old file, which stays
                fresh = self._write_again()
                os.close(self._file)
                self._file = fresh

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _load(self) -> None:
        if not self._path.exists():
            return
        for line in self._path.read_bytes().splitlines():
            try:
                group, topic, partition, offset, metadata = json.loads(line)
            except ValueError:  # an incomplete line after a kill or on a full disk
                continue
            self._offsets.setdefault(group, {})[topic, partition] = offset, metadata

    def _write_again(self) -> int:
        fresh = self._path.with_suffix(".new")
        content = b"".join(_lines(group, offsets) for group, offsets in self._offsets.items())
        fresh.write_bytes(content)
        fresh.chmod(0o600)
        fresh.replace(self._path)
        self._compacted_bytes = len(content)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND)


def _lines(group: str, offsets: dict[tuple[str, int], Committed]) -> bytes:
    # Each starts with a line break, so that an incomplete line before it stays separate.
    return b"".join(
        b"\n" + json.dumps([group, *at, *committed]).encode() + b"\n"
        for at, committed in offsets.items()
    )
