"""Errors of the realtime service, in handshakes (HTTP problem) and in messages (`error`)."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError, UnavailableError


class StreamUnauthorizedError(MevError):
    """A valid API key is required."""

    code = "unauthorized"
    status = 401


class ForbiddenOriginError(MevError):
    """Pages of this origin may not connect."""

    code = "forbidden_origin"
    status = 403


class UnknownPathError(NotFoundError):
    """There is no WebSocket at this path."""


class BadHandshakeError(InvalidInputError):
    """The request is not a valid WebSocket handshake."""

    code = "bad_handshake"


class UpgradeRequiredError(MevError):
    """This path supports WebSocket connections of protocol version 13 only."""

    code = "upgrade_required"
    status = 426


class TooManyConnectionsError(UnavailableError):
    """The limit of connections is reached."""

    code = "too_many_connections"


class BadJsonError(InvalidInputError):
    """The message is not a JSON object."""

    code = "bad_json"


class UnknownOpError(InvalidInputError):
    """The operation does not exist."""

    code = "unknown_op"


class UnknownFieldError(InvalidInputError):
    """The operation does not have this field."""

    code = "unknown_field"


class InvalidFieldError(InvalidInputError):
    """A field is missing or has the wrong type or size."""

    code = "invalid_field"


class UnknownTopicError(InvalidInputError):
    """The topic does not exist."""

    code = "unknown_topic"


class UnsupportedError(InvalidInputError):
    """The server does not support this."""

    code = "unsupported"


class DuplicateIdError(InvalidInputError):
    """The connection already has a subscription with this id."""

    code = "duplicate_id"


class UnknownIdError(InvalidInputError):
    """The connection has no subscription with this id."""

    code = "unknown_id"


class TooManySubscriptionsError(InvalidInputError):
    """The limit of subscriptions per connection is reached."""

    code = "too_many_subscriptions"


class TooManyReplaysError(UnavailableError):
    """The limit of concurrent replays is reached."""

    code = "too_many_replays"


class LogRequiredError(InvalidInputError):
    """A cursor without its log id may belong to another log."""

    code = "log_required"


class SnapshotTooLargeError(InvalidInputError):
    """The snapshot does not fit into the connection's buffers."""

    code = "snapshot_too_large"


class NoSlotError(InvalidInputError):
    """Events of this type have no slot."""

    code = "no_slot"


class CatchingUpError(InvalidInputError):
    """The subscription is not live yet."""

    code = "catching_up"


class QuotaExceededError(InvalidInputError):
    """The principal's limit of subscriptions is reached."""

    code = "quota_exceeded"


class UnknownWebTransportPathError(NotFoundError):
    """There is no WebTransport at this path."""


class BadConnectError(InvalidInputError):
    """The request does not open a WebTransport session."""

    code = "bad_handshake"
