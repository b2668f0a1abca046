"""Committed offsets of consumer groups, in an append-only file with compaction."""

import errno
import json
import os
from pathlib import Path

_COMPACT_BYTES = 1 << 20
Committed = tuple[int, str | None]
Key = tuple[str, str, int]


class CommittedOffsets:
    """The last committed offset and metadata of each group, by topic and partition."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[Key, Committed] = {}
        self._load()
        self._file = self._write_again()

    def get(self, group: str, topic: str, partition: int) -> Committed | None:
        """Return the last commit of `group`, or None."""
        return self._offsets.get((group, topic, partition))

    def of_group(self, group: str) -> list[tuple[str, int]]:
        """Return the partitions with commits of `group`."""
        return [(topic, partition) for of, topic, partition in self._offsets if of == group]

    def put(self, group: str, offsets: dict[tuple[str, int], Committed]) -> None:
        """Store `offsets`.

        :raises OSError: when they cannot be written; they are not stored then.
        """
        lines = b"".join(_line((group, *at), committed) for at, committed in offsets.items())
        if os.write(self._file, lines) < len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._offsets.update({(group, *at): committed for at, committed in offsets.items()})
        if os.fstat(self._file).st_size > max(_COMPACT_BYTES, 400 * len(self._offsets)):
            os.close(self._file)
            self._file = self._write_again()

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
            self._offsets[group, topic, partition] = offset, metadata

    def _write_again(self) -> int:
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(
            b"".join(_line(key, committed) for key, committed in self._offsets.items())
        )
        fresh.chmod(0o600)
        fresh.replace(self._path)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND)


def _line(key: Key, committed: Committed) -> bytes:
    # It starts with a line break, so that an incomplete line before it stays separate.
    return b"\n" + json.dumps([*key, *committed]).encode() + b"\n"
