"""Errors of building and registering models."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError


class UnsupportedModelError(InvalidInputError):
    """The form does not support a part of the model."""

    code = "unsupported_model"


class ModelTooLargeError(InvalidInputError):
    """A file of the model is larger than agents accept."""

    code = "model_too_large"
    status = 413


class CompilerMissingError(MevError):
    """No C compiler is installed."""

    code = "compiler_missing"
    status = 503


class UnknownModelError(NotFoundError):
    """The model does not exist."""

    code = "unknown_model"


class AmbiguousModelError(InvalidInputError):
    """The given prefix matches several model ids."""

    code = "ambiguous_model"
    status = 409


class ModelInUseError(InvalidInputError):
    """The model has an alias."""

    code = "model_in_use"
    status = 409


class ReservedAliasError(InvalidInputError):
    """The alias is managed by deployments."""

    code = "reserved_alias"
    status = 409


class UnknownModelFileError(NotFoundError):
    """The model has no such file."""

    code = "unknown_model_file"


class LateManifestError(InvalidInputError):
    """The manifest was written after the key that signed it was replaced."""

    code = "late_manifest"
    status = 409
