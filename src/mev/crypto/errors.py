"""Why an envelope is refused: each reason has a code of its own, which agents put in their answers."""

from mev.core.errors import InvalidInputError


class EnvelopeError(InvalidInputError):
    """A signed message is refused."""

    code = "envelope_refused"


class MalformedEnvelopeError(EnvelopeError):
    """The bytes are no envelope, or its payload is no message of its type."""

    code = "malformed_envelope"


class WrongPayloadTypeError(EnvelopeError):
    """The envelope carries another kind of message than is expected here."""

    code = "wrong_payload_type"


class UnknownKeyError(EnvelopeError):
    """No key that is trusted signed it."""

    code = "unknown_key"


class BadSignatureError(EnvelopeError):
    """A signature does not fit what is signed."""

    code = "bad_signature"


class NotEnoughSignaturesError(EnvelopeError):
    """Fewer keys signed it than the role needs."""

    code = "not_enough_signatures"


class KeyExpiredError(EnvelopeError):
    """The key that signed it is no longer valid."""

    code = "key_expired"


class KeyNotYetValidError(EnvelopeError):
    """The key that signed it is not valid yet."""

    code = "key_not_yet_valid"


class KeyWithoutRoleError(EnvelopeError):
    """The key that signed it may not sign this kind of message."""

    code = "key_without_role"


class OldKeySetError(EnvelopeError):
    """The key set is not newer than the one in force."""

    code = "old_key_set"


class InvalidKeySetError(EnvelopeError):
    """The key set contradicts itself."""

    code = "invalid_key_set"
