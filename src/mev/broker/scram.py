"""Server side of SCRAM-SHA-256 (RFC 5802, RFC 7677).

The password is never sent, and the client verifies the server, too.
"""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping

MECHANISM = "SCRAM-SHA-256"
_ITERATIONS = 4096  # the minimum of RFC 7677: the password has 256 random bits
_GS2_HEADER = b"n,,"


class AuthenticationError(Exception):
    """The credentials are wrong, or the client does not follow SCRAM."""


class Verifier:
    """Stored verifier of one user's password."""

    def __init__(self, user: str, password: str) -> None:
        self.user = user
        self.salt = secrets.token_bytes(16)
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), self.salt, _ITERATIONS)
        self.stored_key = hashlib.sha256(_hmac(salted, b"Client Key")).digest()
        self.server_key = _hmac(salted, b"Server Key")


class Exchange:
    """Authentication of one client in two messages; `user` is set after the second one."""

    def __init__(self, verifiers: Mapping[str, Verifier]) -> None:
        self._verifiers = verifiers
        self._verifier: Verifier | None = None
        self.user = ""
        self._said = b""
        self._nonce = ""

    def answer(self, message: bytes) -> bytes:
        """Return the answer to the client's next message; the second one sets `user`.

        :raises AuthenticationError: when authentication fails.
        """
        return (
            self._first(message) if self._verifier is None else self._final(self._verifier, message)
        )

    def _first(self, message: bytes) -> bytes:
        if not message.startswith(_GS2_HEADER):
            raise AuthenticationError("no channel binding and no other identity is offered")
        bare = message[len(_GS2_HEADER) :]
        fields = _fields(bare)
        verifier = self._verifiers.get(fields.get("n", ""))
        if not fields.get("r") or verifier is None:
            raise AuthenticationError("unknown user")
        self._verifier = verifier
        self._nonce = fields["r"] + secrets.token_urlsafe(18)
        challenge = (
            f"r={self._nonce},s={b64encode(verifier.salt).decode()},i={_ITERATIONS}".encode()
        )
        self._said = bare + b"," + challenge
        return challenge

    def _final(self, verifier: Verifier, message: bytes) -> bytes:
        without_proof, _, proof_text = message.rpartition(b",p=")
        fields = _fields(without_proof)
        try:
            proof = b64decode(proof_text, validate=True)
        except Base64Error:
            raise AuthenticationError("the proof is not base64") from None
        if fields.get("r") != self._nonce or fields.get("c") != b64encode(_GS2_HEADER).decode():
            raise AuthenticationError("the answer is to another challenge")
        said = self._said + b"," + without_proof
        signature = _hmac(verifier.stored_key, said)
        client_key = bytes(one ^ other for one, other in zip(proof, signature, strict=False))
        if len(proof) != len(signature) or not hmac.compare_digest(
            hashlib.sha256(client_key).digest(), verifier.stored_key
        ):
            raise AuthenticationError("wrong password")
        self.user = verifier.user
        return b"v=" + b64encode(_hmac(verifier.server_key, said))


def _fields(message: bytes) -> dict[str, str]:
    try:
        text = message.decode()
    except UnicodeDecodeError:
        raise AuthenticationError("not UTF-8") from None
    return {part[0]: part[2:] for part in text.split(",") if part[1:2] == "="}


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")
