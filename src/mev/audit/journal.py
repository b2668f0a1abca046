"""Journal of one process: group commit of records, durable when :meth:`Journal.append` returns.

One thread appends; any thread may read. On opening, an unfinished write at the end is truncated;
acknowledged records are never truncated, since they were stored completely.
"""

import fcntl
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from mev.audit import frame
from mev.audit.errors import AuditUnavailableError, JournalDamagedError, JournalInUseError
from mev.audit.log import (
    ConsistencyProof,
    InclusionProof,
    Log,
    Segment,
    SignedHead,
    read_log,
    segment_path,
)
from mev.audit.trusted import trust, trusted_file
from mev.core.clock import now_ns
from mev.core.files import sync_folder, write_atomically
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.crypto.trust import TrustStore
from mev.wire.pb.audit_pb2 import AuditRecord, Checkpoint

LOG = logging.getLogger(__name__)
_LOG_ID = re.compile(r"[A-Za-z0-9_-]+")
_MAX_HEADS = 4096


class Journal:
    """The log that the process with `role` writes in `folder`; segments have `segment_bytes`.

    `check` verifies an existing log before it is signed again; if it raises JournalDamagedError, a
    new log is started. `check_missing` does the same where the folder has no log of the role.

    :raises JournalInUseError: when another process has opened it.
    """

    def __init__(
        self,
        folder: Path,
        role: str,
        key: SigningKey,
        *,
        segment_bytes: int = 16 << 20,
        clock: Callable[[], int] = now_ns,
        check: Callable[[Log, TrustStore], None] = lambda log, known: None,
        check_missing: Callable[[str, TrustStore], None] = lambda role, known: None,
    ) -> None:
        self._folder = folder
        self.key = key
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._reading = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (folder / f"{role}.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise JournalInUseError(
                f"another process writes the audit journal {role!r} in {folder}"
            ) from None
        self.damage: JournalDamagedError | None = None
        self._file = -1
        self._dirty = True
        try:
            self._log = self._open_log(role, check, check_missing)
            self._heal()
        except BaseException:
            self._lock.close()
            raise

    def _open_log(
        self,
        role: str,
        check: Callable[[Log, TrustStore], None],
        check_missing: Callable[[str, TrustStore], None],
    ) -> Log:
        """Read the log of `role`; a damaged log is left unchanged and a new one is started."""
        name = self._folder / f"{role}.log-id"
        had_log = trusted_file(self._folder).exists()
        known = trust(self._folder, self.key)
        try:
            if name.exists():
                log = read_log(self._folder, _log_id_in(name), known)
                check(log, known)
                return log
            if had_log:
                _refuse_missing(name)
            check_missing(role, known)
        except JournalDamagedError as error:
            LOG.error(
                "%s; a new log is begun, the old one is left as it is",
                error.detail,
                extra={"action": "audit_damaged"},
            )
            self.damage = error
        log_id = f"{role}-{secrets.token_hex(4)}"
        write_atomically(name, log_id.encode())
        return Log(log_id)

    @property
    def log_id(self) -> str:
        """Id of the log, constant over restarts."""
        return self._log.log_id

    @property
    def size(self) -> int:
        """Number of records on disk."""
        return self._log.tree.size

    @property
    def first_kept(self) -> int:
        """Index of the first record that retention has not removed."""
        return self._log.removed

    @property
    def heads(self) -> list[SignedHead]:
        """Signed checkpoints, oldest first."""
        return self._log.heads

    def append(self, records: Sequence[AuditRecord]) -> int:
        """Number and write `records`; return the index of the first when all are durable.

        :raises AuditUnavailableError: when they are not; none of them is stored then.
        """
        with self._failing_clearly():
            if self._segment().size_bytes >= self._segment_bytes:
                self._seal()
            segment, first = self._segment(), self.size
            pieces = []
            for index, record in enumerate(records, start=first):
                record.index, record.log_id = index, self.log_id
                body = record.SerializeToString(deterministic=True)
                pieces.append(frame.encode(frame.RECORD, body))
            offset = segment.size_bytes
            self._write(b"".join(data for data, _ in pieces))
        with self._reading:
            for data, hashed in pieces:
                segment.offsets.append(offset)
                self._log.tree.append(hashed)
                offset += len(data)
        return first

    def checkpoint(self) -> SignedHead | None:
        """Sign and store a checkpoint; return it, or None if there is nothing new.

        :raises AuditUnavailableError: when it cannot be written.
        """
        with self._reading:
            if self._signed_size == self.size:
                return None
            head = self._sign()
            with self._failing_clearly():
                if len(self._log.heads) >= _MAX_HEADS:
                    # Thin out: each time, every second checkpoint of the older half is removed.
                    heads = self._log.heads
                    self._rewrite_heads(heads[: len(heads) // 2 : 2] + heads[len(heads) // 2 :])
                self._keep_head(head)
        return head

    def records(self, start: int, limit: int) -> list[bytes]:
        """Return up to `limit` records from `start`, from one segment."""
        with self._reading:
            return self._log.records(start, limit)

    def proof(self, index: int, size: int) -> InclusionProof:
        """Return the proof that record `index`, even a removed one, is among the first `size`."""
        with self._reading:
            return self._log.proof(index, size)

    def subtree_roots(self, level: int, start: int, count: int) -> bytes:
        """Return the roots of `count` complete subtrees of 2**level records from number `start`."""
        with self._reading:
            return self._log.subtree_roots(level, start, count)

    def consistency(self, old: int, new: int) -> ConsistencyProof:
        """Return the proof that the first `new` records begin with the first `old`."""
        with self._reading:
            return self._log.consistency(old, new)

    def retain(self, *, since_ns: int, below: int) -> int:
        """Remove sealed segments with only records older than `since_ns` and below `below`.

        Returns the number of removed segments. Their leaf hashes stay, so that proofs remain
        possible.
        """
        removed = 0
        while len(self._log.segments) > 1:
            oldest = self._log.segments[0]
            if oldest.next_index > below or self._newest_ns(oldest) >= since_ns:
                break
            self._remove(oldest)
            removed += 1
        return removed

    def close(self) -> None:
        """Sign the end, if possible, and close the files."""
        with suppress(AuditUnavailableError):
            self.checkpoint()
        self._drop_file()
        self._lock.close()

    def _sign(self) -> SignedHead:
        tree = self._log.tree
        checkpoint = Checkpoint(
            log_id=self.log_id, size=tree.size, root_hash=tree.root(), at_ns=self._clock()
        )
        return SignedHead(checkpoint, seal(checkpoint, self.key).SerializeToString())

    def _keep_head(self, head: SignedHead) -> None:
        data, _ = frame.encode(frame.CHECKPOINT, head.envelope)
        created = not self._heads_path.exists()
        descriptor = os.open(self._heads_path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, self._log.heads_bytes)  # remove an unfinished checkpoint
            _write_at(descriptor, data, self._log.heads_bytes)
        finally:
            os.close(descriptor)
        if created:
            sync_folder(self._folder)
        self._log.heads_bytes += len(data)
        self._log.heads.append(head)

    def _rewrite_heads(self, heads: list[SignedHead]) -> None:
        data = b"".join(frame.encode(frame.CHECKPOINT, head.envelope)[0] for head in heads)
        write_atomically(self._heads_path, data)
        self._log.heads, self._log.heads_bytes = heads, len(data)

    @property
    def _signed_size(self) -> int:
        return self._log.heads[-1].checkpoint.size if self._log.heads else 0

    @property
    def _heads_path(self) -> Path:
        return self._folder / f"{self.log_id}.checkpoints"

    def _segment(self) -> Segment:
        """Return the segment that receives records, created if needed."""
        if not self._log.segments or self._log.segments[-1].sealed:
            self._begin()
        segment = self._log.segments[-1]
        if self._file < 0:
            self._file = os.open(segment.path, os.O_WRONLY)
        return segment

    def _begin(self) -> None:
        self._drop_file()
        segment = Segment(segment_path(self._folder, self.log_id, self.size), self.size)
        self._file = os.open(segment.path, os.O_WRONLY | os.O_CREAT, 0o600)
        data, _ = frame.encode(frame.HEADER, self._sign().envelope)
        os.ftruncate(self._file, 0)
        _write_at(self._file, data, 0)
        sync_folder(self._folder)
        segment.size_bytes = len(data)
        with self._reading:
            self._log.segments.append(segment)

    def _seal(self) -> None:
        head = self._sign()
        self._write(frame.encode(frame.SEAL, head.envelope)[0])
        self._log.segments[-1].sealed = True
        with self._reading:
            if self._signed_size < head.checkpoint.size:
                self._keep_head(head)

    def _write(self, data: bytes) -> None:
        """Append `data` to the current segment, or leave the segment unchanged."""
        segment = self._segment()
        self._heal()
        self._dirty = True
        _write_at(self._file, data, segment.size_bytes)
        self._dirty = False
        segment.size_bytes += len(data)

    def _heal(self) -> None:
        """Truncate an unfinished write at the end."""
        segment = self._log.segments[-1] if self._log.segments else None
        if not self._dirty or segment is None:
            return
        if not segment.size_bytes:
            self._log.segments.pop().path.unlink()
        elif segment.path.stat().st_size > segment.size_bytes:
            os.truncate(segment.path, segment.size_bytes)
        self._dirty = False

    def _newest_ns(self, segment: Segment) -> int:
        return AuditRecord.FromString(self.records(segment.next_index - 1, 1)[0]).at_ns

    def _remove(self, segment: Segment) -> None:
        """Store the leaf hashes of `segment`, then remove its file; safe at a crash in between."""
        path = self._folder / f"{self.log_id}.leaves"
        with self._reading, self._failing_clearly():
            leaves = b"".join(self._log.tree.leaf(index) for index in range(segment.next_index))
            write_atomically(path, leaves)
            self._log.removed = segment.next_index
            self._log.segments.remove(segment)
            segment.path.unlink()
            # One checkpoint per removed segment is enough to locate later changes.
            gone = range(segment.first + 1, segment.next_index)
            self._rewrite_heads(
                [head for head in self._log.heads if head.checkpoint.size not in gone]
            )

    def _drop_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AuditUnavailableError(
                f"the audit trail in {self._folder} cannot be written ({error.strerror}); "
                "nothing that needs it is done until it can",
                retry_after_s=5,
            ) from None


def _log_id_in(path: Path) -> str:
    log_id = path.read_bytes().decode(errors="replace").strip()
    if not _LOG_ID.fullmatch(log_id):
        raise JournalDamagedError("this is no name of a log", place=path.name, offset=0, index=None)
    return log_id


def _refuse_missing(path: Path) -> NoReturn:
    raise JournalDamagedError(
        "the file is missing, but the folder has keys that sign a log: its log was removed",
        place=path.name,
        offset=None,
        index=None,
    )


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    os.fsync(descriptor)
