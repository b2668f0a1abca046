"""Errors of jobs."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError


class UnknownJobError(NotFoundError):
    """The job does not exist."""

    code = "unknown_job"


class UnknownKindError(InvalidInputError):
    """The kind of job does not exist."""

    code = "unknown_job_kind"


class JobEndedError(MevError):
    """The job has ended."""

    code = "job_ended"
    status = 409


class JobPinnedError(MevError):
    """The job is retained because its output is in use."""

    code = "job_pinned"
    status = 409


class JobNotEndedError(MevError):
    """The job has not ended yet."""

    code = "job_not_ended"
    status = 409


class JobLostError(MevError):
    """The process ended without reporting an outcome."""

    code = "job_lost"


class JobStuckError(MevError):
    """The process stopped sending heartbeats."""

    code = "job_stuck"


class JobBrokenError(MevError):
    """The work failed with an unexpected error."""

    code = "job_broken"


class CancelledJobError(Exception):
    """Raised inside the work when the job was cancelled."""
