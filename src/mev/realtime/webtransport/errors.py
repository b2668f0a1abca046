"""What the gateway refuses that a WebSocket does not know."""

from mev.core.errors import InvalidInputError, MevError, NotFoundError


class UnknownPathError(NotFoundError):
    """There is no WebTransport at this path."""


class BadConnectError(InvalidInputError):
    """The request does not open a WebTransport session."""

    code = "bad_handshake"


class AddressUnusableError(MevError):
    """The address of WebTransport cannot be used."""

    code = "address_in_use"
    status = 409
