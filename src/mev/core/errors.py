"""The root of all errors that users see.

Every error is a :class:`MevError` with a stable ``code``, an HTTP status, a sentence that names the
cause and the remedy, and fields for programs. A subclass next to the code that raises it is for
errors that are caught by name or documented; others use a class of this module with a `code`.
"""

from typing import Any, ClassVar


class MevError(Exception):
    """Error reported to the caller; the first line of a subclass's docstring is its title."""

    code: str = "internal"
    status: ClassVar[int] = 500

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        retry_after_s: int | None = None,
        **fields: object,
    ) -> None:
        super().__init__(detail)
        if code is not None:
            self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.fields: dict[str, Any] = fields

    def problem(self) -> dict[str, object]:
        """Return the error as an RFC 9457 problem object."""
        title = (type(self).__doc__ or "").strip().splitlines()[0].rstrip(".")
        problem: dict[str, object] = {
            "type": f"urn:mev:error:{self.code}",
            "title": title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        problem.update(self.fields)
        return problem


class InvalidInputError(MevError):
    """The input is wrong."""

    code = "invalid_input"
    status = 400


class NotFoundError(MevError):
    """The requested object does not exist."""

    code = "not_found"
    status = 404


class ConflictError(MevError):
    """The request conflicts with the current state."""

    code = "conflict"
    status = 409


class UnavailableError(MevError):
    """A service this depends on does not answer."""

    code = "unavailable"
    status = 503
