"""DSSE envelopes: Ed25519 signatures over the exact bytes of a Protobuf message and its type."""

import re
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from mev.crypto.errors import MalformedEnvelopeError
from mev.wire.pb.envelope_pb2 import Envelope, Signature

M = TypeVar("M", bound=Message)
MAX_ENVELOPE_BYTES = 1 << 20
MAX_SIGNATURES = 16
_WORD_BORDER = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Opened(Generic[M]):
    """A message with verified signatures, and the ids of the keys that count for its role."""

    message: M
    key_ids: tuple[str, ...]


class Signer(Protocol):
    """Signs payloads: a key in memory, or a device that holds one."""

    def sign(self, payload_type: str, payload: bytes) -> Signature:
        """Return a signature over the payload and its type."""


def payload_type(message_type: type[Message]) -> str:
    """Return the media type of `message_type`.

    It is signed too, so that a signature for one message type is not valid for another.
    """
    name = _WORD_BORDER.sub("_", message_type.DESCRIPTOR.name).lower()
    return f"application/vnd.mev.{name}.v1+protobuf"


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes to sign: DSSE's pre-authentication encoding, version 1."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(message: Message, *keys: Signer) -> Envelope:
    """Return `message` in an envelope signed by all `keys`."""
    kind, payload = payload_type(type(message)), message.SerializeToString(deterministic=True)
    return Envelope(
        payload_type=kind, payload=payload, signatures=[key.sign(kind, payload) for key in keys]
    )


def parse(envelope: bytes | Envelope) -> Envelope:
    """Return the parsed envelope, with its size and number of signatures checked.

    :raises MalformedEnvelopeError: if it cannot be parsed, or exceeds a limit.
    """
    size = envelope.ByteSize() if isinstance(envelope, Envelope) else len(envelope)
    if size > MAX_ENVELOPE_BYTES:
        raise MalformedEnvelopeError(
            f"an envelope of {size} bytes; {MAX_ENVELOPE_BYTES} are allowed"
        )
    parsed = envelope if isinstance(envelope, Envelope) else parse_message(Envelope, envelope)
    if not 1 <= len(parsed.signatures) <= MAX_SIGNATURES:
        raise MalformedEnvelopeError(
            f"an envelope with {len(parsed.signatures)} signatures; "
            f"1 to {MAX_SIGNATURES} are allowed"
        )
    return parsed


def parse_message(message_type: type[M], data: bytes) -> M:
    """Return the message of `message_type` in `data`.

    :raises MalformedEnvelopeError: if `data` cannot be parsed.
    """
    try:
        return message_type.FromString(data)
    except DecodeError:
        raise MalformedEnvelopeError(
            f"{len(data)} bytes that are no {message_type.DESCRIPTOR.name}"
        ) from None
