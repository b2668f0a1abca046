"""Proof of possession of a private key: a signature over the exact bytes of an enrolment."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mev.crypto.envelope import pae
from mev.crypto.keys import SigningKey

HEADER = "X-Agent-Signature"
PAYLOAD_TYPE = "application/vnd.mev.agent_enrolment.v1+json"


def prove(key: SigningKey, body: bytes) -> str:
    """Return the header value for an enrolment with `body`."""
    return key.sign(PAYLOAD_TYPE, body).sig.hex()


def is_proven(public_key: bytes, body: bytes, proof: str) -> bool:
    """Return whether the private key of `public_key` signed `body`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            bytes.fromhex(proof), pae(PAYLOAD_TYPE, body)
        )
    except (InvalidSignature, ValueError):
        return False
    return True
