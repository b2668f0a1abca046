"""Ed25519 signing keys: creation, storage and signing.

A seed is never shown, logged or compared.
"""

import hashlib
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mev.core.errors import MevError
from mev.core.files import write_atomically
from mev.crypto.envelope import pae
from mev.wire.pb.envelope_pb2 import Signature, TrustedKey

SEED_BYTES = 32


class InvalidKeyError(MevError):
    """A signing key cannot be used."""

    code = "invalid_key"


class SigningKey:
    """An Ed25519 key pair and its key id."""

    def __init__(self, key_id: str | None, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise InvalidKeyError(f"a seed of {len(seed)} bytes; Ed25519 needs {SEED_BYTES}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.key_id = key_id or default_key_id(self.public_key)

    @classmethod
    def from_hex(cls, seed_hex: str, key_id: str | None = None) -> "SigningKey":
        """Return the key for a seed of 64 hexadecimal digits.

        :raises InvalidKeyError: if the seed is malformed.
        """
        try:
            seed = bytes.fromhex(seed_hex)
        except ValueError:
            raise InvalidKeyError("the seed is not hexadecimal") from None
        return cls(key_id, seed)

    @classmethod
    def generate(cls, key_id: str | None = None) -> "SigningKey":
        """Return a new key."""
        return cls(key_id, secrets.token_bytes(SEED_BYTES))

    def sign(self, payload_type: str, payload: bytes) -> Signature:
        """Return a signature over the exact bytes of `payload`, as a message of `payload_type`."""
        return Signature(key_id=self.key_id, sig=self._key.sign(pae(payload_type, payload)))

    def sign_bytes(self, data: bytes) -> bytes:
        """Return a signature over `data` itself, without a payload type.

        The caller must make sure that `data` cannot be mistaken for another signed format.
        """
        return self._key.sign(data)

    def derived(self, purpose: str) -> "SigningKey":
        """Return the key for `purpose` derived from this one with HKDF-SHA256.

        This key cannot be computed from the derived key.
        """
        seed = HKDF(hashes.SHA256(), SEED_BYTES, salt=None, info=f"mev {purpose}".encode()).derive(
            self._key.private_bytes_raw()
        )
        return SigningKey(None, seed)

    def trusted_for(self, *roles: str, not_before_ns: int = 0, not_after_ns: int = 0) -> TrustedKey:
        """Return this key's entry for a key set; a time of 0 means no limit."""
        return TrustedKey(
            key_id=self.key_id,
            public_key=self.public_key,
            roles=roles,
            not_before_ns=not_before_ns,
            not_after_ns=not_after_ns,
        )

    def __repr__(self) -> str:
        return f"<SigningKey {self.key_id}>"


def default_key_id(public_key: bytes) -> str:
    """Return the default key id: the first 16 hexadecimal digits of the public key's SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def load_or_create(path: Path, key_id: str | None = None) -> SigningKey:
    """Return the key with the hexadecimal seed in `path`; create it if the file is missing.

    Not safe for several processes at once.

    :raises InvalidKeyError: if the file cannot be read, or is malformed.
    """
    try:
        if not path.exists():
            write_atomically(path, secrets.token_hex(SEED_BYTES).encode())
        return SigningKey.from_hex(path.read_text().strip(), key_id)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidKeyError(f"{path}: {error}") from None
    except InvalidKeyError as error:
        raise InvalidKeyError(f"{path}: {error.detail}") from None
