"""Errors of exports."""

from mev.core.errors import InvalidInputError, MevError


class InvalidExportError(InvalidInputError):
    """The export request is invalid."""

    code = "invalid_export"


class ExportQuotaError(MevError):
    """The export quota is reached: too many exports, or too many bytes."""

    code = "export_quota"
    status = 429


class ExportTooLargeError(MevError):
    """The export is larger than allowed."""

    code = "export_too_large"
    status = 413


class TooManyPartsError(InvalidInputError):
    """The export would have too many files."""

    code = "too_many_parts"


class StillChangingError(MevError):
    """Events keep arriving in the range of the export."""

    code = "range_still_changing"
    status = 409


class IncompletePartError(MevError):
    """A file of an export does not contain the counted rows."""

    code = "incomplete_part"


class ExportNotReadyError(MevError):
    """The export has no files, because it has not succeeded."""

    code = "export_not_ready"
    status = 409
