"""Topics of the broker: a folder for each topic, a log for each partition, committed offsets."""

import json
import logging
import re
import secrets
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from mev.broker.log import PartitionLog
from mev.broker.offsets import CommittedOffsets
from mev.broker.wire import ErrorCode
from mev.core.files import write_atomically

LOG = logging.getLogger(__name__)
DEFAULT_PARTITIONS = 4
COMPACTED_BYTES = 4 << 20
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,200}")
_MOST_TOPICS = 500
_MOST_PARTITIONS = 64
_SETTINGS = "topic.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SKIPPED_OFFSETS = 1_000_000
"""Offsets to skip after a power failure: more than the records it can lose.

It loses records of the last seconds; consumers may have read them, so their offsets are not reused.
"""


class TopicError(Exception):
    """A topic cannot be created."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Topics:
    """All topics in `folder`.

    A partition retains its newest `partition_bytes`, a partition of a compacted topic its newest 4
    MiB. Messages of `protected_topics` that `protected_group` has not committed are never removed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        partition_bytes: int,
        protected_group: str = "",
        protected_topics: Iterable[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder / "topics"
        self._folder.mkdir(exist_ok=True, mode=0o700)
        self._partition_bytes = partition_bytes
        self.protected_group = protected_group
        """What this group commits decides what is removed."""
        self._protected_topics = frozenset(protected_topics)
        self.cluster_id = _cluster_id(folder / "cluster-id")
        self.offsets = CommittedOffsets(folder / "offsets")
        self._logs: dict[str, list[PartitionLog]] = {}
        self._stop_file = folder / "stopped"
        skipped = _SKIPPED_OFFSETS if _has_lost_power(folder / "boot-id", self._stop_file) else 0
        for path in sorted(self._folder.iterdir()):
            settings = (
                json.loads((path / _SETTINGS).read_bytes()) if (path / _SETTINGS).exists() else None
            )
            if settings is not None:
                self._open(
                    path.name,
                    settings["partitions"],
                    is_compacted=settings["is_compacted"],
                    skipped=skipped,
                )

    def names(self) -> list[str]:
        """Return the names of all topics."""
        return sorted(self._logs)

    def partitions(self, topic: str) -> list[PartitionLog]:
        """Return the logs of a topic, or an empty list."""
        return self._logs.get(topic, [])

    def log(self, topic: str, partition: int) -> PartitionLog | None:
        """Return the log of one partition, or None."""
        logs = self.partitions(topic)
        return logs[partition] if 0 <= partition < len(logs) else None

    def create(
        self, topic: str, partitions: int = DEFAULT_PARTITIONS, *, is_compacted: bool = False
    ) -> None:
        """Create a topic.

        :raises TopicError: when it exists, or its name or number of partitions is invalid.
        """
        if topic in self._logs:
            raise TopicError(ErrorCode.TOPIC_ALREADY_EXISTS, f"topic {topic} exists")
        if not _NAME.fullmatch(topic):
            raise TopicError(
                ErrorCode.INVALID_TOPIC,
                "a topic's name has 1 to 200 letters, digits, dots, underscores and hyphens",
            )
        if len(self._logs) >= _MOST_TOPICS:
            raise TopicError(
                ErrorCode.INVALID_TOPIC,
                f"the embedded broker has {_MOST_TOPICS} topics, which is its limit",
            )
        if not 1 <= partitions <= _MOST_PARTITIONS:
            raise TopicError(
                ErrorCode.INVALID_PARTITIONS, f"a topic has 1 to {_MOST_PARTITIONS} partitions"
            )
        try:
            self._open(topic, partitions, is_compacted=is_compacted)
            settings = json.dumps({"partitions": partitions, "is_compacted": is_compacted})
            (self._folder / topic / _SETTINGS).write_text(settings)
        except OSError as error:
            raise TopicError(
                ErrorCode.KAFKA_STORAGE_ERROR, f"topic {topic}: {error.strerror}"
            ) from None

    def close(self) -> None:
        """Put everything on the disk, note that it is there, and close all files."""
        for logs in self._logs.values():
            for log in logs:
                log.sync()
                log.close()
        self.offsets.close()
        write_atomically(self._stop_file, b"")

    def _open(self, topic: str, partitions: int, *, is_compacted: bool, skipped: int = 0) -> None:
        size = (
            min(COMPACTED_BYTES, self._partition_bytes) if is_compacted else self._partition_bytes
        )
        is_protected = topic in self._protected_topics
        self._logs[topic] = [
            PartitionLog(
                self._folder / topic / str(number),
                max_bytes=size,
                stored=partial(self._stored, topic, number) if is_protected else None,
                skipped=skipped,
            )
            for number in range(partitions)
        ]

    def _stored(self, topic: str, partition: int) -> int:
        committed = self.offsets.get(self.protected_group, topic, partition)
        return committed[0] if committed else 0


def _has_lost_power(known: Path, stopped: Path) -> bool:
    """Return whether the machine restarted without a clean stop of the broker.

    Then the newest records may be lost.
    """
    try:
        boot_id = _BOOT_ID.read_text().strip()
    except OSError:
        return False
    was_killed = known.exists() and known.read_text() != boot_id and not stopped.exists()
    write_atomically(known, boot_id.encode())
    stopped.unlink(missing_ok=True)
    if was_killed:
        LOG.warning(
            "power_lost: the machine started again without a stop: "
            "the next %d offsets are left out",
            _SKIPPED_OFFSETS,
        )
    return was_killed


def _cluster_id(path: Path) -> str:
    if not path.exists():
        path.write_text(f"embedded-{secrets.token_hex(8)}")
    return path.read_text().strip()
