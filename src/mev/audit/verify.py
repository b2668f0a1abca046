"""Checking the trail: the files by themselves, then the copies against the files."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mev.audit.errors import JournalDamagedError
from mev.audit.log import Log, log_ids, read_log
from mev.crypto.errors import EnvelopeError
from mev.crypto.merkle import leaf_hash
from mev.crypto.trust import AUDIT, TrustStore
from mev.wire.pb.audit_pb2 import AuditRecord, Checkpoint


@dataclass(slots=True)
class Verdict:
    """What was found of one log: `damage` is the first thing that is wrong, `notes` what is worth knowing and right."""

    log_id: str
    log: Log | None = None
    damage: JournalDamagedError | None = None
    notes: list[str] = field(default_factory=list)


def verify_folder(folder: Path, trust: TrustStore) -> list[Verdict]:
    """Return a verdict for every log in `folder`."""
    return [_verify(folder, log_id, trust) for log_id in log_ids(folder)]


def _verify(folder: Path, log_id: str, trust: TrustStore) -> Verdict:
    verdict = Verdict(log_id)
    try:
        log = verdict.log = read_log(folder, log_id, trust)
    except JournalDamagedError as error:
        verdict.damage = error
        return verdict
    if log.torn:
        verdict.notes.append(f"{log.torn.path.name} ends with a write that was never finished, as after a crash; the next start cuts it")
    unsigned = log.tree.size - (log.heads[-1].checkpoint.size if log.heads else 0)
    if unsigned:
        verdict.notes.append(f"the last {unsigned} records are in no checkpoint yet")
    return verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """What was read of the copies: records and checkpoints in ClickHouse, and the messages of the audit topic in Kafka."""

    records: dict[str, list[AuditRecord]]
    heads: dict[str, list[bytes]]
    published: list[bytes]


def compare(verdict: Verdict, copies: Copies, trust: TrustStore) -> None:
    """Compare a log that is sound by itself with what was copied of it before it was read."""
    if verdict.log is None or verdict.damage:
        return
    log = verdict.log
    try:
        signed = _compare_heads(log, copies.heads.get(log.log_id, []), "ClickHouse audit_checkpoints", trust)
        copied = _compare_records(log, copies.records.get(log.log_id, []), signed)
        published = [envelope for envelope in copies.published if _is_of(envelope, log.log_id, trust)]
        _compare_heads(log, published, "Kafka mev.audit.v1", trust)
    except JournalDamagedError as error:
        verdict.damage = error
        return
    if copied < log.tree.size:
        verdict.notes.append(f"the last {log.tree.size - copied} records are not in ClickHouse yet")
    if not published:
        verdict.notes.append("Kafka holds no checkpoint of it any more")


def _compare_heads(log: Log, envelopes: Iterable[bytes], place: str, trust: TrustStore) -> int:
    """Return the size of the largest checkpoint, when all fit."""
    largest = 0
    for envelope in envelopes:
        try:
            head = trust.open(envelope, Checkpoint, AUDIT, 0)
        except EnvelopeError as error:
            raise JournalDamagedError(f"a checkpoint is refused: {error.detail}", place=place, offset=None, index=None) from None
        if head.size > log.tree.size:
            what = f"a checkpoint of {head.size} records, and the journal ends after {log.tree.size}: its end was cut off"
            raise JournalDamagedError(what, place=place, offset=None, index=log.tree.size)
        if head.log_id != log.log_id or log.tree.root(head.size) != head.root_hash:
            what = f"a checkpoint of {head.size} records that is not the journal's: one of them was replaced"
            raise JournalDamagedError(what, place=place, offset=None, index=None)
        largest = max(largest, head.size)
    return largest


def _compare_records(log: Log, records: Iterable[AuditRecord], signed: int) -> int:
    """Return how many records are copied, when all fit; every one below `signed` must be there."""
    place = f"ClickHouse audit_log of {log.log_id}"
    present = bytearray(log.tree.size)
    for record in records:
        if record.index >= log.tree.size:
            raise JournalDamagedError("a record that the journal does not have", place=place, offset=None, index=record.index)
        if leaf_hash(record.SerializeToString(deterministic=True)) != log.tree.leaf(record.index):
            raise JournalDamagedError("the row is not what was journaled", place=place, offset=None, index=record.index)
        present[record.index] = 1
    copied = present.rfind(1) + 1
    missing = present.find(0, 0, max(signed, copied))
    if missing >= 0:
        raise JournalDamagedError("the row is missing", place=place, offset=None, index=missing)
    return copied


def _is_of(envelope: bytes, log_id: str, trust: TrustStore) -> bool:
    """Say whether a message of the topic, which other systems may share, is a checkpoint of ours."""
    try:
        return trust.open(envelope, Checkpoint, AUDIT, 0).log_id == log_id
    except EnvelopeError:
        return False
