"""Errors that end a stream or a subscription; temporary failures are retried instead."""

from mev.core.errors import InvalidInputError, MevError, UnavailableError


class StreamError(MevError):
    """The stream ended."""

    code = "stream_ended"


class BadUrlError(InvalidInputError):
    """The URL is not the address of a server."""

    code = "bad_url"


class BadCursorError(InvalidInputError):
    """The text is not a cursor."""

    code = "bad_cursor"


class BadOptionError(InvalidInputError):
    """The value of an option is invalid."""

    code = "bad_option"


class UnreachableError(UnavailableError, StreamError):
    """No connection was established within the time limit."""

    code = "unreachable"


class NotAServerError(StreamError):
    """The server at the address speaks another protocol."""

    code = "not_a_server"
    status = 502


class UnauthorizedError(StreamError):
    """The credential is unknown or has been revoked."""

    code = "unauthorized"
    status = 401


class ForbiddenError(StreamError):
    """The credential lacks the permission."""

    code = "forbidden"
    status = 403


class DisconnectedError(StreamError):
    """An operator ended the connection."""

    code = "disconnected"
    status = 403


class MessageTooBigError(StreamError):
    """The server sent a message above the client's size limit."""

    code = "message_too_big"
    status = 413


class RefusedError(InvalidInputError, StreamError):
    """The server refused the request; `reason` is its code, `field` the field at fault if known."""

    code = "refused"

    def __init__(
        self,
        detail: str,
        *,
        reason: str,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail, reason=reason, field=field)
        self.reason = reason
        self.field = field
        self.wait_s = retry_after_s


class UndecodableEventError(MevError):
    """The bytes of an event do not match its event type."""

    code = "undecodable_event"
