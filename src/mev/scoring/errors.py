"""Errors of loading models and scoring rows; agents report their codes."""

from mev.core.errors import InvalidInputError


class ModelError(InvalidInputError):
    """The model is refused."""

    code = "model_refused"


class MalformedModelError(ModelError):
    """The model file is malformed."""

    code = "malformed_model"


class WrongRowsError(ModelError):
    """The rows do not fit the model."""

    code = "wrong_rows"


class WrongSchemaError(ModelError):
    """The model needs features that are not computed here."""

    code = "wrong_feature_schema"


class BadManifestError(ModelError):
    """The manifest of the model is not trusted."""

    code = "bad_manifest"


class UnsignedManifestError(BadManifestError):
    """No trusted key signed the manifest."""

    code = "unsigned_manifest"


class BadModelDigestError(ModelError):
    """The file does not match the signed digest."""

    code = "bad_model_digest"


class UnsafeModelFileError(ModelError):
    """The file is not a regular file that only its owner can write."""

    code = "unsafe_model_file"


class UnsafeModelPathError(ModelError):
    """The path is not a model file in the model folder."""

    code = "unsafe_model_path"


class ModelMissingError(ModelError):
    """The model file does not exist."""

    code = "model_missing"
    status = 404


class WrongAbiError(ModelError):
    """The compiled model has another ABI, or another id than its manifest."""

    code = "wrong_model_abi"


class ProbeError(ModelError):
    """The probe process crashed, hung or could not load the model."""

    code = "model_probe_failed"


class ParityError(ModelError):
    """The model's scores of the frozen rows differ from the original's."""

    code = "model_parity"
