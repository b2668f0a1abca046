"""Why a model is not loaded, and why rows are not scored: each reason has a code of its own, which agents put in their answers."""

from mev.core.errors import InvalidInputError, MevError


class ModelError(InvalidInputError):
    """A model is refused."""

    code = "model_refused"


class EngineMissingError(MevError):
    """The engine that reads models was not built."""

    code = "engine_missing"


class MalformedModelError(ModelError):
    """The file is no model that can be read."""

    code = "malformed_model"


class WrongRowsError(ModelError):
    """The rows do not fit the model."""

    code = "wrong_rows"


class WrongSchemaError(ModelError):
    """The model was made for other features than are computed here."""

    code = "wrong_feature_schema"


class BadManifestError(ModelError):
    """The manifest of a model cannot be trusted."""

    code = "bad_manifest"


class UnsignedManifestError(BadManifestError):
    """Nobody whose signature counts signed the manifest."""

    code = "unsigned_manifest"


class BadModelDigestError(ModelError):
    """The file is another one than was signed."""

    code = "bad_model_digest"


class UnsafeModelFileError(ModelError):
    """The file is no plain one in the folder of models that only its owner can write."""

    code = "unsafe_model_file"


class UnsafeModelPathError(ModelError):
    """The path does not name a model in the folder of models."""

    code = "unsafe_model_path"


class ModelMissingError(ModelError):
    """There is no such file."""

    code = "model_missing"
    status = 404


class WrongAbiError(ModelError):
    """The compiled model speaks another interface, or is another model than its manifest says."""

    code = "wrong_model_abi"


class ProbeError(ModelError):
    """A process that tried the model died, hung or could not load it."""

    code = "model_probe_failed"


class ParityError(ModelError):
    """The model does not score the frozen rows as the model it was made from."""

    code = "model_parity"
