"""Reasons to refuse an envelope; agents report the `code` of each."""

from mev.core.errors import InvalidInputError


class EnvelopeError(InvalidInputError):
    """A signed message is refused."""

    code = "envelope_refused"


class MalformedEnvelopeError(EnvelopeError):
    """The bytes are not an envelope, or its payload is not a message of its type."""

    code = "malformed_envelope"


class WrongPayloadTypeError(EnvelopeError):
    """The envelope contains another message type than expected."""

    code = "wrong_payload_type"


class UnknownKeyError(EnvelopeError):
    """No trusted key signed it."""

    code = "unknown_key"


class BadSignatureError(EnvelopeError):
    """A signature does not match the signed bytes."""

    code = "bad_signature"


class NotEnoughSignaturesError(EnvelopeError):
    """Fewer keys signed it than the role needs."""

    code = "not_enough_signatures"


class KeyExpiredError(EnvelopeError):
    """The key that signed it has expired."""

    code = "key_expired"


class KeyNotYetValidError(EnvelopeError):
    """The key that signed it is not valid yet."""

    code = "key_not_yet_valid"


class KeyWithoutRoleError(EnvelopeError):
    """The key that signed it lacks the role for this message type."""

    code = "key_without_role"


class OldKeySetError(EnvelopeError):
    """The key set is not newer than the active one."""

    code = "old_key_set"


class InvalidKeySetError(EnvelopeError):
    """The key set is inconsistent."""

    code = "invalid_key_set"
