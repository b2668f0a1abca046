"""Errors of the audit trail."""

from mev.core.errors import MevError, NotFoundError, UnavailableError


class AuditUnavailableError(UnavailableError):
    """The action was not executed: it could not be recorded in the audit trail."""

    code = "audit_unavailable"


class JournalDamagedError(MevError):
    """A file of the audit trail was changed."""

    code = "journal_damaged"

    def __init__(self, what: str, *, place: str, offset: int | None, index: int | None) -> None:
        at = "" if offset is None else f", byte {offset}"
        number = "" if index is None else f", record {index}"
        super().__init__(f"{place}{at}{number}: {what}", place=place, offset=offset, index=index)


class JournalInUseError(MevError):
    """Another process writes this journal."""

    code = "journal_in_use"
    status = 409


class NoSuchRecordError(NotFoundError):
    """The record or log does not exist."""

    code = "no_such_record"


class NotInCheckpointError(MevError):
    """The record is newer than the newest signed checkpoint."""

    code = "not_in_checkpoint"
    status = 409
