"""DSSE envelopes: Ed25519 over the exact bytes of a Protobuf message and its type, never over a second encoding of it."""

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
    """A message whose signatures were checked, and the ids of the distinct keys that count for it."""

    message: M
    key_ids: tuple[str, ...]


class Signer(Protocol):
    """Whatever can sign: a key in memory, or a device that holds one."""

    def sign(self, payload_type: str, payload: bytes) -> Signature:
        """Return a signature over both."""


def payload_type(message_type: type[Message]) -> str:
    """Return the media type of messages of `message_type`: a signature for one kind is worth nothing for another."""
    name = _WORD_BORDER.sub("_", message_type.DESCRIPTOR.name).lower()
    return f"application/vnd.mev.{name}.v1+protobuf"


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: DSSE's pre-authentication encoding, version 1."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(message: Message, *keys: Signer) -> Envelope:
    """Return `message` in an envelope that every one of `keys` signed."""
    kind, payload = payload_type(type(message)), message.SerializeToString(deterministic=True)
    return Envelope(payload_type=kind, payload=payload, signatures=[key.sign(kind, payload) for key in keys])


def parse(envelope: bytes | Envelope) -> Envelope:
    """Return the envelope in `envelope`, its size checked.

    :raises MalformedEnvelopeError: when it is none, or larger than one may be.
    """
    size = envelope.ByteSize() if isinstance(envelope, Envelope) else len(envelope)
    if size > MAX_ENVELOPE_BYTES:
        raise MalformedEnvelopeError(f"an envelope of {size} bytes; {MAX_ENVELOPE_BYTES} are allowed")
    parsed = envelope if isinstance(envelope, Envelope) else parse_message(Envelope, envelope)
    if not 1 <= len(parsed.signatures) <= MAX_SIGNATURES:
        raise MalformedEnvelopeError(f"an envelope with {len(parsed.signatures)} signatures; 1 to {MAX_SIGNATURES} are allowed")
    return parsed


def parse_message(message_type: type[M], data: bytes) -> M:
    """Return the message of `message_type` in `data`.

    :raises MalformedEnvelopeError: when it is none.
    """
    try:
        return message_type.FromString(data)
    except DecodeError:
        raise MalformedEnvelopeError(f"{len(data)} bytes that are no {message_type.DESCRIPTOR.name}") from None
