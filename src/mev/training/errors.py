"""Why a model is not trained."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError


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


class TrainingUnavailableError(MevError):
    """What trains models is not installed."""

    code = "training_unavailable"
    status = 503


class UnknownTrainingError(NotFoundError):
    """There is no such training, or it has no such file."""

    code = "unknown_training"
