"""Proofs out of the running journal, and out of the files of the other processes that share its folder."""

from dataclasses import dataclass
from typing import Protocol

from mev.audit.errors import NoSuchRecordError, NotInCheckpointError
from mev.audit.log import ConsistencyProof, InclusionProof, SignedHead, log_ids, read_log
from mev.audit.service import Audit
from mev.audit.trusted import read_trusted, trusted_file


class _Provable(Protocol):
    @property
    def heads(self) -> list[SignedHead]: ...

    def proof(self, index: int, size: int) -> InclusionProof: ...

    def consistency(self, old: int, new: int) -> ConsistencyProof: ...


@dataclass(frozen=True, slots=True)
class Proofs:
    """Gives proofs. All methods block: the log of another process is read whole."""

    audit: Audit

    def inclusion(self, log_id: str, index: int) -> tuple[InclusionProof, SignedHead]:
        """Return the proof that the log holds record `index`, and the newest checkpoint, which it leads to.

        :raises NotInCheckpointError: when the record is newer than that.
        """
        log = self._log(log_id)
        head = log.heads[-1] if log.heads else None
        if head is None or index >= head.checkpoint.size:
            raise NotInCheckpointError(f"record {index} of {log_id} is in no signed checkpoint yet; ask again soon", retry_after_s=10)
        if index < 0:
            raise NoSuchRecordError("records are numbered from 0")
        return log.proof(index, head.checkpoint.size), head

    def consistency(self, log_id: str, old: int, new: int) -> ConsistencyProof:
        """Return the proof that the first `new` records of the log begin with the first `old`."""
        return self._log(log_id).consistency(old, new)

    def _log(self, log_id: str) -> _Provable:
        journal = self.audit.journal
        if log_id == journal.log_id:
            return journal
        if log_id not in log_ids(self.audit.folder):
            raise NoSuchRecordError(f"there is no log {log_id} here; the records name theirs")
        return read_log(self.audit.folder, log_id, read_trusted(trusted_file(self.audit.folder)))
