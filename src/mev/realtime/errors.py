"""What the realtime service refuses, in handshakes (HTTP problem) and in messages (`error`)."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError, UnavailableError


class UnauthorizedError(MevError):
    """A valid API key is needed."""

    code = "unauthorized"
    status = 401


class ForbiddenOriginError(MevError):
    """Web pages of this origin may not connect."""

    code = "forbidden_origin"
    status = 403


class UnknownPathError(NotFoundError):
    """There is no WebSocket at this path."""


class BadHandshakeError(InvalidInputError):
    """The request is no valid WebSocket handshake."""

    code = "bad_handshake"


class UpgradeRequiredError(MevError):
    """Only version 13 of the WebSocket protocol is spoken."""

    code = "upgrade_required"
    status = 426


class TooManyConnectionsError(UnavailableError):
    """The server has as many connections as it may."""

    code = "too_many_connections"


class BadJsonError(InvalidInputError):
    """The message is not a JSON object."""

    code = "bad_json"


class UnknownOpError(InvalidInputError):
    """There is no such operation."""

    code = "unknown_op"


class UnknownFieldError(InvalidInputError):
    """The operation has no such field."""

    code = "unknown_field"


class InvalidFieldError(InvalidInputError):
    """A field is missing or has the wrong type or size."""

    code = "invalid_field"


class UnknownTopicError(InvalidInputError):
    """There is no such topic."""

    code = "unknown_topic"


class UnsupportedError(InvalidInputError):
    """The server does not do this."""

    code = "unsupported"


class DuplicateIdError(InvalidInputError):
    """The connection has a subscription with this id."""

    code = "duplicate_id"


class UnknownIdError(InvalidInputError):
    """The connection has no subscription with this id."""

    code = "unknown_id"


class TooManySubscriptionsError(InvalidInputError):
    """The connection has as many subscriptions as it may."""

    code = "too_many_subscriptions"


class TooManyReplaysError(UnavailableError):
    """As many subscriptions catch up with the past as may."""

    code = "too_many_replays"


class NoSlotError(InvalidInputError):
    """Events of this type belong to no slot."""

    code = "no_slot"


class CatchingUpError(InvalidInputError):
    """The subscription is not live yet."""

    code = "catching_up"


class QuotaExceededError(InvalidInputError):
    """The principal has as many subscriptions as it may."""

    code = "quota_exceeded"
