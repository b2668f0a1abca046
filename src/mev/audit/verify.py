"""Verification of the trail: first the files, then the copies against the files."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mev.audit.errors import JournalDamagedError
from mev.audit.log import Log, log_ids, read_log
from mev.audit.tlog import NOTE_PREFIX, log_id_of
from mev.crypto.errors import EnvelopeError
from mev.crypto.merkle import leaf_hash
from mev.crypto.note import InvalidNoteError, is_signed_by, read_checkpoint
from mev.crypto.trust import AUDIT, TrustStore
from mev.wire.pb.audit_pb2 import AuditRecord, Checkpoint


@dataclass(slots=True)
class LogVerdict:
    """Result for one log: `damage` is the first error, `notes` are remarks that are not errors."""

    log_id: str
    log: Log | None = None
    damage: JournalDamagedError | None = None
    notes: list[str] = field(default_factory=list)


def verify_folder(
    folder: Path, trust: TrustStore, *, at_ns: int, unsigned_s: float
) -> list[LogVerdict]:
    """Return a verdict for every log in `folder` at the time `at_ns`.

    Records older than `unsigned_s` without a checkpoint count as damage: a rewritten history with
    deleted checkpoints looks like that.
    """
    return [
        _verify(folder, log_id, trust, at_ns - round(unsigned_s * 1e9))
        for log_id in log_ids(folder)
    ]


def _verify(folder: Path, log_id: str, trust: TrustStore, signed_before_ns: int) -> LogVerdict:
    verdict = LogVerdict(log_id)
    try:
        log = verdict.log = read_log(folder, log_id, trust)
    except JournalDamagedError as error:
        verdict.damage = error
        return verdict
    if log.torn:
        verdict.notes.append(
            f"{log.torn.path.name} ends with a write that was never finished, as after a "
            "crash; the next start cuts it"
        )
    unsigned = log.tree.size - (log.heads[-1].checkpoint.size if log.heads else 0)
    if unsigned:
        verdict.notes.append(f"the last {unsigned} records are in no checkpoint yet")
        verdict.damage = _overdue(log, log.tree.size - unsigned, signed_before_ns)
    return verdict


def _overdue(log: Log, first: int, signed_before_ns: int) -> JournalDamagedError | None:
    """Return the damage if record `first`, which no checkpoint signs, is too old."""
    record = next(iter(log.records(first, 1)), None)
    at_ns = AuditRecord.FromString(record).at_ns if record is not None else 0
    if at_ns >= signed_before_ns:
        return None
    since = (
        datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="seconds")
        if at_ns
        else "long ago"
    )
    return JournalDamagedError(
        f"records {first} to {log.tree.size - 1}, since {since}, are in no checkpoint: "
        "their checkpoints were taken away, or the process was killed and not started again "
        "(then a start signs them); compare with the copies "
        "or with a checkpoint kept elsewhere (--checkpoint)",
        place=f"{log.log_id}.checkpoints",
        offset=None,
        index=first,
    )


def compare_kept(
    verdicts: Sequence[LogVerdict], envelope: bytes, place: str, trust: TrustStore
) -> None:
    """Compare a log with a checkpoint stored elsewhere.

    :raises JournalDamagedError: when the checkpoint's log is not in the folder.
    """
    try:
        head = _open_kept(envelope, trust)
    except (EnvelopeError, InvalidNoteError) as error:
        raise JournalDamagedError(
            f"the checkpoint is refused: {error.detail}", place=place, offset=None, index=None
        ) from None
    log_id = head.log_id
    verdict = next((one for one in verdicts if one.log_id == log_id), None)
    if verdict is None:
        raise JournalDamagedError(
            f"log {log_id} of this checkpoint is not in the folder",
            place=place,
            offset=None,
            index=0,
        )
    if verdict.log is None or verdict.damage:
        return
    try:
        _compare_head(verdict.log, head, place)
    except JournalDamagedError as error:
        verdict.damage = error


def _open_kept(content: bytes, trust: TrustStore) -> Checkpoint:
    """Return the checkpoint in an envelope or in a signed note."""
    if not content.startswith(NOTE_PREFIX):
        return trust.open(content, Checkpoint, AUDIT, 0)
    note = read_checkpoint(content)
    keys = (key for key in trust.key_set.keys if AUDIT in key.roles)
    if not any(is_signed_by(content, note.origin, key.public_key) for key in keys):
        raise InvalidNoteError("no trusted audit key signed it")
    return Checkpoint(log_id=log_id_of(note.origin), size=note.size, root_hash=note.root_hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCopies:
    """The copies: records and checkpoints in ClickHouse, and messages of the audit topic."""

    records: dict[str, list[AuditRecord]]
    heads: dict[str, list[bytes]]
    published: list[bytes]


def compare(verdict: LogVerdict, copies: LogCopies, trust: TrustStore) -> None:
    """Compare a valid log with copies that were read before it."""
    if verdict.log is None or verdict.damage:
        return
    log = verdict.log
    try:
        signed = compare_heads(log, copies.heads.get(log.log_id, []), trust)
        copied = _compare_records(log, copies.records.get(log.log_id, []), signed)
        published = compare_published(log, copies.published, trust)
    except JournalDamagedError as error:
        verdict.damage = error
        return
    if copied < log.tree.size:
        verdict.notes.append(f"the last {log.tree.size - copied} records are not in ClickHouse yet")
    if not published:
        verdict.notes.append("Kafka holds no checkpoint of it any more")


def removed_logs(
    verdicts: Sequence[LogVerdict], copies: LogCopies, trust: TrustStore
) -> list[LogVerdict]:
    """Return a verdict for every log that a trusted key signed and the folder does not have."""
    envelopes = [*copies.published, *(one for heads in copies.heads.values() for one in heads)]
    known = {verdict.log_id for verdict in verdicts}
    return [
        LogVerdict(
            log_id,
            damage=JournalDamagedError(
                "a trusted key signed checkpoints of this log, and the folder does not have it: "
                "its files were removed",
                place=log_id,
                offset=None,
                index=None,
            ),
        )
        for log_id in sorted(signed_logs(envelopes, trust) - known)
    ]


def signed_logs(envelopes: Iterable[bytes], trust: TrustStore) -> set[str]:
    """Return the ids of the logs of which `envelopes` has a checkpoint under a trusted key."""
    found = set()
    for envelope in envelopes:
        with suppress(EnvelopeError):  # of another control plane
            found.add(trust.open(envelope, Checkpoint, AUDIT, 0).log_id)
    return found


def compare_heads(
    log: Log,
    envelopes: Iterable[bytes],
    trust: TrustStore,
    place: str = "ClickHouse audit_checkpoints",
) -> int:
    """Return the size of the largest copied checkpoint of the log, if all match.

    :raises JournalDamagedError: naming the first that does not match.
    """
    largest = 0
    for envelope in envelopes:
        try:
            head = trust.open(envelope, Checkpoint, AUDIT, 0)
        except EnvelopeError as error:
            raise JournalDamagedError(
                f"a checkpoint is refused: {error.detail}", place=place, offset=None, index=None
            ) from None
        _compare_head(log, head, place)
        largest = max(largest, head.size)
    return largest


def compare_published(log: Log, messages: Iterable[bytes], trust: TrustStore) -> list[bytes]:
    """Return the messages of the audit topic that are checkpoints of the log, if all match.

    :raises JournalDamagedError: naming the first that does not match.
    """
    published = [envelope for envelope in messages if _is_of(envelope, log.log_id, trust)]
    compare_heads(log, published, trust, "Kafka mev.audit.v1")
    return published


def _compare_head(log: Log, head: Checkpoint, place: str) -> None:
    if head.size > log.tree.size:
        what = (
            f"a checkpoint of {head.size} records, and the journal ends after "
            f"{log.tree.size}: its end was cut off"
        )
        raise JournalDamagedError(what, place=place, offset=None, index=log.tree.size)
    if head.log_id != log.log_id or log.tree.root(head.size) != head.root_hash:
        what = (
            f"a checkpoint of {head.size} records that is not the journal's: one of them "
            "was replaced"
        )
        raise JournalDamagedError(what, place=place, offset=None, index=None)


def _compare_records(log: Log, records: Sequence[AuditRecord], signed: int) -> int:
    """Return the number of copied records, if all match and none below `signed` is missing."""
    compare_rows(log, records)
    present = bytearray(log.tree.size)
    for record in records:
        present[record.index] = 1
    copied = present.rfind(1) + 1
    missing = present.find(0, 0, max(signed, copied))
    if missing >= 0:
        raise JournalDamagedError(
            "the row is missing", place=_rows_of(log), offset=None, index=missing
        )
    return copied


def compare_rows(log: Log, records: Iterable[AuditRecord]) -> None:
    """Compare copied records with the log.

    :raises JournalDamagedError: naming the first that does not match.
    """
    for record in records:
        if record.index >= log.tree.size:
            raise JournalDamagedError(
                "a record that the journal does not have",
                place=_rows_of(log),
                offset=None,
                index=record.index,
            )
        if leaf_hash(record.SerializeToString(deterministic=True)) != log.tree.leaf(record.index):
            raise JournalDamagedError(
                "the row is not what was journaled",
                place=_rows_of(log),
                offset=None,
                index=record.index,
            )


def _rows_of(log: Log) -> str:
    return f"ClickHouse audit_log of {log.log_id}"


def _is_of(envelope: bytes, log_id: str, trust: TrustStore) -> bool:
    """Return whether a message is a checkpoint of this log; the topic may be shared."""
    try:
        return trust.open(envelope, Checkpoint, AUDIT, 0).log_id == log_id
    except EnvelopeError:
        return False
