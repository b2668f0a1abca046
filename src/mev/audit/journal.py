"""The journal of one process: records are appended many at once, and are on the disk when :meth:`Journal.append` returns.

One thread appends; any thread may read. What a crash left unfinished at the end is cut when the journal is opened, and only that: no
record that was acknowledged is ever cut, because the whole of it was on the disk.
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

from mev.audit import frame
from mev.audit.errors import AuditUnavailableError, JournalDamagedError, JournalInUseError
from mev.audit.log import ConsistencyProof, InclusionProof, Log, Segment, SignedHead, read_log, segment_path
from mev.audit.trusted import trust
from mev.core.clock import now_ns
from mev.core.files import sync_folder, write_atomically
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.wire.pb.audit_pb2 import AuditRecord, Checkpoint

LOG = logging.getLogger(__name__)
_LOG_ID = re.compile(r"[A-Za-z0-9_-]+")
_MAX_HEADS = 4096


class Journal:
    """The log that the process in `role` writes in `folder`; segments are sealed when they reach `segment_bytes`.

    :raises JournalInUseError: when another process has it open.
    """

    def __init__(
        self, folder: Path, role: str, key: SigningKey, *, segment_bytes: int = 16 << 20, clock: Callable[[], int] = now_ns
    ) -> None:
        self._folder = folder
        self._key = key
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._reading = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (folder / f"{role}.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise JournalInUseError(f"another process writes the audit journal {role!r} in {folder}") from None
        self.damage: JournalDamagedError | None = None
        self._file = -1
        self._dirty = True
        try:
            self._log = self._open_log(role)
            self._heal()
        except BaseException:
            self._lock.close()
            raise

    def _open_log(self, role: str) -> Log:
        """Read the log of `role`. A damaged one is left as it is, for people to look at, and a new one is begun."""
        name = self._folder / f"{role}.log-id"
        known = trust(self._folder, self._key)
        try:
            if name.exists():
                return read_log(self._folder, _log_id_in(name), known)
        except JournalDamagedError as error:
            LOG.error("%s; a new log is begun, the old one is left as it is", error.detail, extra={"action": "audit_damaged"})
            self.damage = error
        log_id = f"{role}-{secrets.token_hex(4)}"
        write_atomically(name, log_id.encode())
        return Log(log_id)

    @property
    def log_id(self) -> str:
        """The id of the log, the same at every start."""
        return self._log.log_id

    @property
    def size(self) -> int:
        """The number of records on the disk."""
        return self._log.tree.size

    @property
    def first_kept(self) -> int:
        """The index of the first record that retention has not removed."""
        return self._log.removed

    @property
    def heads(self) -> list[SignedHead]:
        """The signed checkpoints, oldest first."""
        return self._log.heads

    def append(self, records: Sequence[AuditRecord]) -> int:
        """Number `records`, write them, and return the index of the first when they all are on the disk.

        :raises AuditUnavailableError: when they are not; nothing of them stays.
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
        """Sign the log as it is and keep the checkpoint; return it, or None when nothing changed since the last one.

        :raises AuditUnavailableError: when it cannot be written.
        """
        with self._reading:
            if self._signed_size == self.size:
                return None
            head = self._sign()
            with self._failing_clearly():
                if len(self._log.heads) >= _MAX_HEADS:
                    # The older, the fewer: each time this happens, every second one of the older half goes.
                    heads = self._log.heads
                    self._rewrite_heads(heads[: len(heads) // 2 : 2] + heads[len(heads) // 2 :])
                self._keep_head(head)
        return head

    def records(self, start: int, limit: int) -> list[bytes]:
        """Return the bytes of up to `limit` records from `start` on, of one segment."""
        with self._reading:
            return self._log.records(start, limit)

    def proof(self, index: int, size: int) -> InclusionProof:
        """Return the proof that record `index`, also one that retention removed, is among the first `size`."""
        with self._reading:
            return self._log.proof(index, size)

    def consistency(self, old: int, new: int) -> ConsistencyProof:
        """Return the proof that the first `new` records begin with the first `old`."""
        with self._reading:
            return self._log.consistency(old, new)

    def retain(self, *, since_ns: int, below: int) -> int:
        """Remove the sealed segments whose every record is older than `since_ns` and numbered below `below`; return how many.

        Their leaf hashes stay, so that every proof can still be given.
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
        """Sign the end, if the disk allows, and let go of the files."""
        with suppress(AuditUnavailableError):
            self.checkpoint()
        self._drop_file()
        self._lock.close()

    def _sign(self) -> SignedHead:
        tree = self._log.tree
        checkpoint = Checkpoint(log_id=self.log_id, size=tree.size, root_hash=tree.root(), at_ns=self._clock())
        return SignedHead(checkpoint, seal(checkpoint, self._key).SerializeToString())

    def _keep_head(self, head: SignedHead) -> None:
        data, _ = frame.encode(frame.CHECKPOINT, head.envelope)
        created = not self._heads_path.exists()
        descriptor = os.open(self._heads_path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, self._log.heads_bytes)  # a checkpoint that was never finished
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
        """Return the segment that takes records, made when there is none."""
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
        """Write `data` behind the current segment, or leave it as it was."""
        segment = self._segment()
        self._heal()
        self._dirty = True
        _write_at(self._file, data, segment.size_bytes)
        self._dirty = False
        segment.size_bytes += len(data)

    def _heal(self) -> None:
        """Cut what a write that was never finished left at the end."""
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
        """Keep the leaf hashes of `segment`, then remove its file; a crash between leaves both, which is no harm."""
        path = self._folder / f"{self.log_id}.leaves"
        with self._reading, self._failing_clearly():
            leaves = b"".join(self._log.tree.leaf(index) for index in range(segment.next_index))
            write_atomically(path, leaves)
            self._log.removed = segment.next_index
            self._log.segments.remove(segment)
            segment.path.unlink()
            # One checkpoint for each segment that is gone is enough to say later which of them was changed.
            gone = range(segment.first + 1, segment.next_index)
            self._rewrite_heads([head for head in self._log.heads if head.checkpoint.size not in gone])

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
                f"the audit trail in {self._folder} cannot be written ({error.strerror}); nothing that needs it is done until it can",
                retry_after_s=5,
            ) from None


def _log_id_in(path: Path) -> str:
    log_id = path.read_bytes().decode(errors="replace").strip()
    if not _LOG_ID.fullmatch(log_id):
        raise JournalDamagedError("this is no name of a log", place=path.name, offset=0, index=None)
    return log_id


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    os.fsync(descriptor)
