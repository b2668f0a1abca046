"""Why a model is not trained."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError, UnavailableError


class InvalidTrainingError(InvalidInputError):
    """The training cannot be done as asked."""

    code = "invalid_training"


class DamagedExportError(InvalidInputError):
    """The export is not what its manifest says."""

    code = "damaged_export"


class EmptyExportError(InvalidInputError):
    """There are no rows to learn from, or none to validate with."""

    code = "empty_export"


class UnknownColumnError(InvalidInputError):
    """The export has no such column."""

    code = "unknown_column"


class LeakingFeatureError(InvalidInputError):
    """A feature is known only after the decision."""

    code = "leaking_feature"


class MissingTargetError(InvalidInputError):
    """The target is missing in some rows, or is no number that the objective takes."""

    code = "bad_target"


class OneClassError(InvalidInputError):
    """All rows have the same target."""

    code = "one_class"


class EmptyFeatureError(InvalidInputError):
    """A feature is missing in every row."""

    code = "all_missing_feature"


class InfiniteFeatureError(InvalidInputError):
    """A feature is infinite."""

    code = "infinite_feature"


class NoGroupsError(InvalidInputError):
    """No slot has rows to rank."""

    code = "no_groups"


class UnsortedExportError(InvalidInputError):
    """The rows of a slot do not follow each other."""

    code = "unsorted_export"


class NoGpuError(MevError):
    """There is no GPU that can be used."""

    code = "no_gpu"
    status = 409


class ExportFailedError(InvalidInputError):
    """The export to learn from did not succeed."""

    code = "export_failed"


class UnregistrableModelError(InvalidInputError):
    """Agents could not use such a model."""

    code = "unregistrable_model"


class TrainingQuotaError(MevError):
    """Too many trainings wait or run."""

    code = "training_quota"
    status = 429


class TrainingUnavailableError(MevError):
    """What trains models is not installed."""

    code = "training_unavailable"
    status = 503


class UnknownTrainingError(NotFoundError):
    """There is no such training, or it has no such file."""

    code = "unknown_training"


class SearchUnavailableError(MevError):
    """What searches for parameters is not installed."""

    code = "search_unavailable"
    status = 503


class DistributedUnavailableError(MevError):
    """What trains on several machines is not installed."""

    code = "distributed_unavailable"
    status = 503


class SchedulerNotAllowedError(MevError):
    """The scheduler is none that this machine may speak to."""

    code = "scheduler_not_allowed"
    status = 403


class SchedulerUnavailableError(UnavailableError):
    """The scheduler does not answer."""

    code = "scheduler_unavailable"


class TooFewWorkersError(UnavailableError):
    """There are fewer workers than the training needs."""

    code = "too_few_workers"


class UnequalWorkersError(MevError):
    """A worker has other code, or does not see the export."""

    code = "unequal_workers"
    status = 409


class WorkersLostError(MevError):
    """Workers were lost, or took too long, more often than the training puts up with."""

    code = "workers_lost"
    status = 503
