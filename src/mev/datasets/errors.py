"""What can be wrong with an export."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError


class InvalidExportError(InvalidInputError):
    """The export cannot be made as asked."""

    code = "invalid_export"


class ExportQuotaError(MevError):
    """Too much is exported at once, or kept."""

    code = "export_quota"
    status = 429


class ExportTooLargeError(MevError):
    """The export is larger than allowed."""

    code = "export_too_large"
    status = 413


class TooManyPartsError(InvalidInputError):
    """The export would be too many files."""

    code = "too_many_parts"


class StillChangingError(MevError):
    """The range is still being written."""

    code = "range_still_changing"
    status = 409


class ExportNotReadyError(MevError):
    """The export has no files yet, or none for ever."""

    code = "export_not_ready"
    status = 409


class UnknownFileError(NotFoundError):
    """The export has no such file."""

    code = "unknown_export_file"
