"""The one error root.

Every refusal or failure a user can see is a :class:`MevError`: a stable ``code``, an HTTP status, a sentence that names
the cause and the remedy, and fields for programs. Leaves live beside their domain.
"""

from typing import ClassVar


class MevError(Exception):
    """Something the caller should know about; the docstring of a subclass is its title."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, detail: str, *, retry_after_s: int | None = None, **fields: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.fields = fields

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
    """There is no such thing."""

    code = "not_found"
    status = 404


class UnavailableError(MevError):
    """A service this depends on does not answer."""

    code = "unavailable"
    status = 503
