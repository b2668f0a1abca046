"""What can be wrong with a job."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError


class UnknownJobError(NotFoundError):
    """There is no such job."""

    code = "unknown_job"


class UnknownKindError(InvalidInputError):
    """There is no such kind of job."""

    code = "unknown_job_kind"


class JobEndedError(MevError):
    """The job has ended."""

    code = "job_ended"
    status = 409


class JobNotEndedError(MevError):
    """The job has not ended."""

    code = "job_not_ended"
    status = 409


class JobLostError(MevError):
    """The work ended without a word."""

    code = "job_lost"


class JobStuckError(MevError):
    """The work gave no sign of life."""

    code = "job_stuck"


class JobBrokenError(MevError):
    """The work failed with an error that nobody foresaw."""

    code = "job_broken"


class InvalidCursorError(InvalidInputError):
    """The cursor is not one of this list."""

    code = "invalid_query"


class CancelledJobError(Exception):
    """Raised inside the work when it is not wanted any longer."""
