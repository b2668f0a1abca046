"""Reading and verification of the files of one log, also without a running system.

In one folder, for each log: segments ``<log_id>-<first index>.log`` (a header frame, records, a
seal), ``<log_id>.checkpoints`` (signed checkpoints), and ``<log_id>.leaves`` (leaf hashes of the
segments that retention removed, 32 bytes each).
"""

import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from mev.audit import frame
from mev.audit.errors import JournalDamagedError
from mev.audit.frame import BadFrameError, Frame
from mev.crypto.errors import EnvelopeError
from mev.crypto.merkle import HASH_BYTES, MerkleTree, Proof
from mev.crypto.trust import AUDIT, TrustStore
from mev.wire.pb.audit_pb2 import AuditRecord, Checkpoint

_SEGMENT = re.compile(r"(?P<log>[A-Za-z0-9._-]+)-(?P<first>\d{12,})\.log")


@dataclass(slots=True)
class Segment:
    """One segment file: the index of its first record, and the offset of each record."""

    path: Path
    first: int
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    size_bytes: int = 0
    sealed: bool = False

    @property
    def next_index(self) -> int:
        """Index after the last record."""
        return self.first + len(self.offsets)


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A checkpoint and its envelope."""

    checkpoint: Checkpoint
    envelope: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """Proof that a record is in the log; `record` is None if retention removed it."""

    index: int
    leaf_hash: bytes
    record: bytes | None
    size: int
    path: Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyProof:
    """Proof that a log was only appended to."""

    path: Proof
    old_root: bytes
    new_root: bytes


@dataclass(slots=True)
class Log:
    """A log as stored in its files; `torn` is the segment with an unfinished write at its end."""

    log_id: str
    tree: MerkleTree = field(default_factory=MerkleTree)
    removed: int = 0
    segments: list[Segment] = field(default_factory=list)
    heads: list[SignedHead] = field(default_factory=list)
    heads_bytes: int = 0
    torn: Segment | None = None

    def records(self, start: int, limit: int) -> list[bytes]:
        """Return up to `limit` records from `start`, from one segment; an empty list if none."""
        segment = next((s for s in self.segments if s.first <= start < s.next_index), None)
        if segment is None:
            return []
        starts = segment.offsets[start - segment.first : start - segment.first + limit + 1]
        stop = starts[limit] if len(starts) > limit else segment.size_bytes
        with segment.path.open("rb") as file:
            file.seek(starts[0])
            data = file.read(stop - starts[0])
        return [piece.body for piece in frame.scan(data) if piece.kind == frame.RECORD]

    def proof(self, index: int, size: int) -> InclusionProof:
        """Return the proof that record `index` is among the first `size`.

        :raises NoSuchTreeError: when it is not.
        """
        path = self.tree.inclusion(index, size)
        record = next(iter(self.records(index, 1)), None)
        return InclusionProof(
            index=index, leaf_hash=self.tree.leaf(index), record=record, size=size, path=path
        )

    def subtree_roots(self, level: int, start: int, count: int) -> bytes:
        """Return the roots of `count` complete subtrees of 2**level records from number `start`."""
        return self.tree.subtree_roots(level, start, count)

    def consistency(self, old: int, new: int) -> ConsistencyProof:
        """Return the proof that the first `new` records begin with the first `old`.

        :raises NoSuchTreeError: when the log never had these sizes.
        """
        return ConsistencyProof(
            path=self.tree.consistency(old, new),
            old_root=self.tree.root(old),
            new_root=self.tree.root(new),
        )


def log_ids(folder: Path) -> list[str]:
    """Return the ids of the logs that have files in `folder`."""
    names = {
        match["log"] for path in folder.glob("*.log") if (match := _SEGMENT.fullmatch(path.name))
    }
    return sorted(
        names | {path.stem for kind in ("*.checkpoints", "*.leaves") for path in folder.glob(kind)}
    )


def segment_path(folder: Path, log_id: str, first: int) -> Path:
    """Return the file of the segment that starts with record `first`."""
    return folder / f"{log_id}-{first:012d}.log"


def read_log(folder: Path, log_id: str, trust: TrustStore) -> Log:
    """Return the log after verifying all hashes, chains and signatures.

    :raises JournalDamagedError: with the file, byte and record of the first error.
    """
    # Checkpoints first: concurrent writes only make the segments longer.
    log = Log(log_id)
    _read_heads(log, folder / f"{log_id}.checkpoints", trust)
    paths = _segment_paths(folder, log_id)
    _read_leaves(log, folder, first_kept=paths[0][0] if paths else None)
    for number, (first, path) in enumerate(paths):
        _read_segment(log, Segment(path, first), trust, last=number == len(paths) - 1)
    _check_heads(log, folder, log.tree.size)
    if log.heads and log.heads[-1].checkpoint.size > log.tree.size:
        _refuse_cut(log, folder)
    return log


def _segment_paths(folder: Path, log_id: str) -> list[tuple[int, Path]]:
    matches = [(path, _SEGMENT.fullmatch(path.name)) for path in folder.glob(f"{log_id}-*.log")]
    return sorted(
        (int(match["first"]), path) for path, match in matches if match and match["log"] == log_id
    )


def _read_heads(log: Log, path: Path, trust: TrustStore) -> None:
    size, data = 0, path.read_bytes() if path.exists() else b""
    log.heads_bytes = len(data)
    try:
        for piece in frame.scan(data):
            head = _open_head(piece, trust, path)
            if (
                piece.kind != frame.CHECKPOINT
                or head.checkpoint.log_id != log.log_id
                or head.checkpoint.size < size
            ):
                raise JournalDamagedError(
                    "this checkpoint does not belong here",
                    place=path.name,
                    offset=piece.offset,
                    index=None,
                )
            size = head.checkpoint.size
            log.heads.append(head)
    except BadFrameError as error:
        if not error.torn:
            raise JournalDamagedError(
                str(error), place=path.name, offset=error.offset, index=None
            ) from None
        log.heads_bytes = error.offset


def _open_head(piece: Frame, trust: TrustStore, path: Path, index: int | None = None) -> SignedHead:
    try:
        # The validity of the keys was checked at signing time.
        return SignedHead(trust.open(piece.body, Checkpoint, AUDIT, 0), piece.body)
    except EnvelopeError as error:
        raise JournalDamagedError(
            f"the checkpoint is refused: {error.detail}",
            place=path.name,
            offset=piece.offset,
            index=index,
        ) from None


def _read_leaves(log: Log, folder: Path, first_kept: int | None) -> None:
    path = folder / f"{log.log_id}.leaves"
    leaves = path.read_bytes() if path.exists() else b""
    known = len(leaves) // HASH_BYTES
    log.removed = known if first_kept is None else first_kept
    if log.removed > known:
        raise JournalDamagedError(
            f"records {known} to {log.removed - 1} are missing",
            place=path.name,
            offset=len(leaves),
            index=known,
        )
    for at in range(0, log.removed * HASH_BYTES, HASH_BYTES):
        log.tree.append(leaves[at : at + HASH_BYTES])


def _read_segment(log: Log, segment: Segment, trust: TrustStore, *, last: bool) -> None:
    if segment.first != log.tree.size:
        what = f"records {log.tree.size} to {segment.first - 1} are missing before this file"
        raise JournalDamagedError(what, place=segment.path.name, offset=0, index=log.tree.size)
    data = segment.path.read_bytes()
    try:
        for piece in frame.scan(data):
            _take(log, segment, piece, trust)
    except BadFrameError as error:
        if not (error.torn and last and not segment.sealed):
            raise JournalDamagedError(
                str(error), place=segment.path.name, offset=error.offset, index=log.tree.size
            ) from None
        log.torn = segment
        segment.size_bytes = error.offset
    else:
        segment.size_bytes = len(data)
        if not data and last:
            log.torn = segment
    if not last and not segment.sealed:
        what = "the file ends without its seal, yet another follows"
        raise JournalDamagedError(
            what, place=segment.path.name, offset=len(data), index=log.tree.size
        )
    log.segments.append(segment)


def _take(log: Log, segment: Segment, piece: Frame, trust: TrustStore) -> None:
    expected = frame.HEADER if piece.offset == 0 else frame.RECORD
    index = log.tree.size
    if (
        segment.sealed
        or piece.kind not in {expected, frame.SEAL}
        or (piece.kind == frame.SEAL and piece.offset == 0)
    ):
        raise JournalDamagedError(
            "a piece that does not belong here",
            place=segment.path.name,
            offset=piece.offset,
            index=index,
        )
    if piece.kind == frame.RECORD:
        _check_record(log, segment, piece)
        segment.offsets.append(piece.offset)
        log.tree.append(piece.hashed)
        return
    head = _open_head(piece, trust, segment.path, index).checkpoint
    if (head.log_id, head.size, head.root_hash) != (log.log_id, index, log.tree.root()):
        what = "the records before this are not those that were signed"
        _blame(log, segment.path.parent, index)
        raise JournalDamagedError(what, place=segment.path.name, offset=piece.offset, index=index)
    segment.sealed = piece.kind == frame.SEAL


def _check_record(log: Log, segment: Segment, piece: Frame) -> None:
    try:
        record = AuditRecord.FromString(piece.body)
    except DecodeError:
        record = AuditRecord()
    if (record.log_id, record.index) != (log.log_id, log.tree.size):
        what = (
            f"record {record.index} of log {record.log_id!r} stands here, where record "
            f"{log.tree.size} of {log.log_id!r} belongs"
        )
        raise JournalDamagedError(
            what, place=segment.path.name, offset=piece.offset, index=log.tree.size
        )


def _blame(log: Log, folder: Path, size: int) -> None:
    """Raise for the first records below `size` that contradict a checkpoint, if any."""
    if log.tree.size >= size:
        _check_heads(log, folder, size)


def _check_heads(log: Log, folder: Path, size: int) -> None:
    """Compare the tree with every checkpoint of up to `size` records."""
    good = 0
    for head in log.heads:
        checkpoint = head.checkpoint
        if checkpoint.size > size:
            return
        if log.tree.root(checkpoint.size) != checkpoint.root_hash:
            what = f"one of the records {good} to {checkpoint.size - 1} is not what was signed"
            place, offset = _place(log, folder, good)
            raise JournalDamagedError(what, place=place, offset=offset, index=good)
        good = checkpoint.size


def _refuse_cut(log: Log, folder: Path) -> None:
    size, signed = log.tree.size, log.heads[-1].checkpoint.size
    what = f"the end is cut off: {signed} records were signed, {size} are here"
    place = (
        log.segments[-1].path.name if log.segments else segment_path(folder, log.log_id, size).name
    )
    raise JournalDamagedError(
        what, place=place, offset=log.segments[-1].size_bytes if log.segments else 0, index=size
    )


def _place(log: Log, folder: Path, index: int) -> tuple[str, int | None]:
    if index < log.removed:
        return f"{log.log_id}.leaves", index * HASH_BYTES
    for segment in log.segments:
        if segment.first <= index < segment.next_index:
            return segment.path.name, segment.offsets[index - segment.first]
    return segment_path(folder, log.log_id, index).name, None
