"""Why a model is not made or registered."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError


class UnsupportedModelError(InvalidInputError):
    """The model has a part that the form does not know."""

    code = "unsupported_model"


class ModelTooLargeError(InvalidInputError):
    """Agents would refuse a file of that size."""

    code = "model_too_large"
    status = 413


class CompilerMissingError(MevError):
    """There is no C compiler here."""

    code = "compiler_missing"


class CompilationError(MevError):
    """The model could not be compiled."""

    code = "compilation_failed"


class UnknownModelError(NotFoundError):
    """There is no such model."""

    code = "unknown_model"


class AmbiguousModelError(InvalidInputError):
    """Several models have an id that begins like that."""

    code = "ambiguous_model"
    status = 409


class ModelInUseError(InvalidInputError):
    """An alias names the model."""

    code = "model_in_use"
    status = 409


class ReservedAliasError(InvalidInputError):
    """The alias follows what agents run."""

    code = "reserved_alias"
    status = 409


class UnknownModelFileError(NotFoundError):
    """The model has no such file."""

    code = "unknown_model_file"


class LateManifestError(InvalidInputError):
    """The manifest came after the key that signed it was replaced."""

    code = "late_manifest"
    status = 409
