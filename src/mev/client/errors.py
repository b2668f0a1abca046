"""Why a stream or a subscription ended. What passes by itself is not here: the client waits and tries again."""

from mev.core.errors import InvalidInputError, MevError, UnavailableError


class StreamError(MevError):
    """The stream ended."""

    code = "stream_ended"


class BadUrlError(InvalidInputError):
    """The address is none of a server."""

    code = "bad_url"


class BadCursorError(InvalidInputError):
    """The text is no cursor."""

    code = "bad_cursor"


class BadOptionError(InvalidInputError):
    """An option has no such value."""

    code = "bad_option"


class UnreachableError(UnavailableError, StreamError):
    """No connection came about in the time that was given."""

    code = "unreachable"


class NotAServerError(StreamError):
    """What answers at the address speaks another protocol."""

    code = "not_a_server"
    status = 502


class UnauthorizedError(StreamError):
    """The server does not know the credential, or no more."""

    code = "unauthorized"
    status = 401


class ForbiddenError(StreamError):
    """The credential is good, and not for this."""

    code = "forbidden"
    status = 403


class DisconnectedError(StreamError):
    """An operator ended the connection."""

    code = "disconnected"
    status = 403


class MessageTooBigError(StreamError):
    """The server sent a message above the limit of this client."""

    code = "message_too_big"
    status = 413


class RefusedError(InvalidInputError, StreamError):
    """The server refused what was asked; `reason` is its code, and `field` what is wrong, where it says so."""

    code = "refused"

    def __init__(self, detail: str, *, reason: str, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(detail, reason=reason, field=field)
        self.reason = reason
        self.field = field
        self.wait_s = retry_after_s


class UndecodableEventError(MevError):
    """An event is not what its topic says."""

    code = "undecodable_event"
