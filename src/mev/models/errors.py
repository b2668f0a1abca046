"""Why a model is not made or registered."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError


class UnsupportedModelError(InvalidInputError):
    """The model has a part that the form does not know."""

    code = "unsupported_model"


class CompilerMissingError(MevError):
    """There is no C compiler here."""

    code = "compiler_missing"


class CompilationError(MevError):
    """The model could not be compiled."""

    code = "compilation_failed"


class UnknownModelError(NotFoundError):
    """There is no such model."""

    code = "unknown_model"


class ModelInUseError(InvalidInputError):
    """An alias names the model."""

    code = "model_in_use"
    status = 409
