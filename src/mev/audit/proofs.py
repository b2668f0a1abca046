"""Proofs from the running journal, and from the files of other processes in its folder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mev.audit.errors import NoSuchRecordError, NotInCheckpointError
from mev.audit.log import ConsistencyProof, InclusionProof, SignedHead, log_ids, read_log
from mev.audit.trusted import read_trusted, trusted_file

if TYPE_CHECKING:
    # It needs prometheus_client, which `mev audit verify` does not import.
    from mev.audit.service import (
        Audit,
    )


class Provable(Protocol):
    """A log that provides proofs."""

    @property
    def heads(self) -> list[SignedHead]:
        """Signed checkpoints, oldest first."""

    def proof(self, index: int, size: int) -> InclusionProof:
        """Return the proof that record `index` is among the first `size`."""

    def consistency(self, old: int, new: int) -> ConsistencyProof:
        """Return the proof that the first `new` records begin with the first `old`."""

    def records(self, start: int, limit: int) -> list[bytes]:
        """Return up to `limit` records from `start`, from one segment."""

    def subtree_roots(self, level: int, start: int, count: int) -> bytes:
        """Return the roots of `count` complete subtrees of 2**level records from number `start`."""


@dataclass(frozen=True, slots=True)
class Proofs:
    """Provides proofs; all methods block and read the logs of other processes completely."""

    audit: "Audit"

    def inclusion(self, log_id: str, index: int) -> tuple[InclusionProof, SignedHead]:
        """Return the proof that the log contains record `index`, with the newest checkpoint.

        :raises NotInCheckpointError: when the record is newer than the checkpoint.
        """
        log = self.log(log_id)
        head = log.heads[-1] if log.heads else None
        if head is None or index >= head.checkpoint.size:
            raise NotInCheckpointError(
                f"record {index} of {log_id} is in no signed checkpoint yet; ask again soon",
                retry_after_s=10,
            )
        if index < 0:
            raise NoSuchRecordError("records are numbered from 0")
        return log.proof(index, head.checkpoint.size), head

    def consistency(self, log_id: str, old: int, new: int) -> ConsistencyProof:
        """Return the proof that the first `new` records of the log begin with the first `old`."""
        return self.log(log_id).consistency(old, new)

    def log(self, log_id: str) -> Provable:
        """Return the log.

        :raises NoSuchRecordError: when it is not in the folder.
        """
        journal = self.audit.journal
        if log_id == journal.log_id:
            return journal
        if log_id not in log_ids(self.audit.folder):
            raise NoSuchRecordError(f"there is no log {log_id} here; the records name theirs")
        return read_log(self.audit.folder, log_id, read_trusted(trusted_file(self.audit.folder)))
