"""Signed notes and checkpoints of transparency logs.

Formats: https://c2sp.org/signed-note and https://c2sp.org/tlog-checkpoint.

The same key also signs envelopes. The signatures cannot be confused: an envelope's signed bytes
begin with ``DSSEv1``, those of a checkpoint with the origin of the log.
"""

import base64
import hashlib
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mev.core.errors import InvalidInputError
from mev.crypto.keys import SigningKey
from mev.crypto.merkle import HASH_BYTES

_ED25519 = b"\x01"
_DASH = "\u2014 "
_KEY_HASH_BYTES = 4


class InvalidNoteError(InvalidInputError):
    """The signed note is malformed, or lacks a valid signature."""

    code = "invalid_note"


@dataclass(frozen=True, slots=True)
class NoteCheckpoint:
    """The size and root hash of the log `origin`."""

    origin: str
    size: int
    root_hash: bytes

    def text(self) -> str:
        """Return the text to sign."""
        root = base64.b64encode(self.root_hash).decode()
        return f"{self.origin}\n{self.size}\n{root}\n"


def verifier_key(name: str, public_key: bytes) -> str:
    """Return the public key in the format of signed-note verifiers."""
    encoded = base64.b64encode(_ED25519 + public_key).decode()
    return f"{name}+{_key_hash(name, public_key).hex()}+{encoded}"


def sign_checkpoint(key: SigningKey, checkpoint: NoteCheckpoint) -> bytes:
    """Return a checkpoint as a signed note; the key's name is the origin."""
    text, name = checkpoint.text(), checkpoint.origin
    signature = _key_hash(name, key.public_key) + key.sign_bytes(text.encode())
    return f"{text}\n{_DASH}{name} {base64.b64encode(signature).decode()}\n".encode()


def read_checkpoint(note: bytes) -> NoteCheckpoint:
    """Return the checkpoint in a signed note; signatures are not verified.

    :raises InvalidNoteError: if it is malformed.
    """
    text, _ = _split(note)
    lines = text.split("\n")
    if len(lines) < 4 or not lines[0] or not (lines[1].isascii() and lines[1].isdigit()):
        raise InvalidNoteError(
            "the checkpoint is not an origin, a size and a root hash, a line each"
        )
    root = _decoded(lines[2])
    if len(lines[1]) > 19 or lines[1] != str(int(lines[1])) or len(root) != HASH_BYTES:
        raise InvalidNoteError("the size or the root hash of the checkpoint is malformed")
    return NoteCheckpoint(lines[0], int(lines[1]), root)


def is_signed_by(note: bytes, name: str, public_key: bytes) -> bool:
    """Return whether the note has a valid signature of the key; other signatures are ignored.

    :raises InvalidNoteError: if the note is malformed.
    """
    text, signatures = _split(note)
    expected = _key_hash(name, public_key)
    for line in signatures:
        signer, _, encoded = line.removeprefix(_DASH).partition(" ")
        signature = _decoded(encoded)
        if signer == name and signature[:_KEY_HASH_BYTES] == expected:
            try:
                verifier = Ed25519PublicKey.from_public_bytes(public_key)
                verifier.verify(signature[_KEY_HASH_BYTES:], text.encode())
            except InvalidSignature:
                return False
            return True
    return False


def tile_entries(records: list[bytes]) -> bytes:
    """Return a tile's records as an entry bundle: each prefixed with its length in two bytes.

    :raises InvalidNoteError: if a record is longer than the format allows.
    """
    try:
        return b"".join(struct.pack(">H", len(record)) + record for record in records)
    except struct.error:
        raise InvalidNoteError("a record of this tile is longer than 65535 bytes") from None


def _split(note: bytes) -> tuple[str, list[str]]:
    try:
        text, blank, signatures = note.decode().rpartition("\n\n")
    except UnicodeDecodeError:
        raise InvalidNoteError("the note is not UTF-8") from None
    lines = signatures.removesuffix("\n").split("\n")
    if not blank or not signatures.endswith("\n"):
        raise InvalidNoteError("the note has no blank line before its signatures, or is cut off")
    if not all(line.startswith(_DASH) for line in lines):
        raise InvalidNoteError("a signature line of the note is malformed")
    return text + "\n", lines


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise InvalidNoteError("the note holds malformed base64") from None


def _key_hash(name: str, public_key: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:_KEY_HASH_BYTES]
