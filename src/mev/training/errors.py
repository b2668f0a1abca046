"""Errors of training."""

from mev.core.errors import InvalidInputError, MevError, UnavailableError


class InvalidTrainingError(InvalidInputError):
    """The training request is invalid."""

    code = "invalid_training"


class DamagedExportError(InvalidInputError):
    """The export does not match its manifest."""

    code = "damaged_export"


class EmptyExportError(InvalidInputError):
    """No rows are left to train on or to validate with."""

    code = "empty_export"


class UnknownColumnError(InvalidInputError):
    """The export has no such column."""

    code = "unknown_column"


class LeakingFeatureError(InvalidInputError):
    """A feature is known only after the decision."""

    code = "leaking_feature"


class MissingTargetError(InvalidInputError):
    """The target is missing in some rows, or not a number that the objective accepts."""

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
    """The rows of a slot are not adjacent."""

    code = "unsorted_export"


class NoGpuError(MevError):
    """No usable GPU was found."""

    code = "no_gpu"
    status = 409


class ExportFailedError(InvalidInputError):
    """The export to train on did not succeed."""

    code = "export_failed"


class UnregistrableModelError(InvalidInputError):
    """Agents could not use the model."""

    code = "unregistrable_model"


class TrainingQuotaError(MevError):
    """The limit of queued and running trainings is reached."""

    code = "training_quota"
    status = 429


class TrainingUnavailableError(MevError):
    """The training extra is not installed."""

    code = "training_unavailable"
    status = 503


class SearchUnavailableError(MevError):
    """The search extra is not installed."""

    code = "search_unavailable"
    status = 503


class DistributedUnavailableError(MevError):
    """The distributed extra is not installed."""

    code = "distributed_unavailable"
    status = 503


class SchedulerNotAllowedError(MevError):
    """The scheduler is not in TRAIN_SCHEDULERS."""

    code = "scheduler_not_allowed"
    status = 403


class SchedulerNotEncryptedError(MevError):
    """The scheduler is on another machine or requires certificates, and TLS is not configured."""

    code = "scheduler_not_encrypted"
    status = 403


class WorkerHasSecretsError(MevError):
    """A worker has secrets of this program in its environment."""

    code = "worker_has_secrets"
    status = 409


class SchedulerUnavailableError(UnavailableError):
    """The scheduler does not answer."""

    code = "scheduler_unavailable"


class TooFewWorkersError(UnavailableError):
    """There are fewer workers than the training needs."""

    code = "too_few_workers"


class UnequalWorkersError(MevError):
    """A worker has other code or does not see the export."""

    code = "unequal_workers"
    status = 409


class WorkersLostError(MevError):
    """Workers were lost or timed out more often than allowed."""

    code = "workers_lost"
    status = 503
