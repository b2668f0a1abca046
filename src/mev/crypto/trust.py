"""Verification of envelopes against the active key set.

Signatures are verified over the received bytes. Signatures of keys that are not in the set are
ignored, so that two key sets can overlap during a rotation. A signature that does not match its key
is always an error.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import Message

from mev.crypto.envelope import Opened, pae, parse, parse_message, payload_type
from mev.crypto.errors import (
    BadSignatureError,
    EnvelopeError,
    InvalidKeySetError,
    KeyExpiredError,
    KeyNotYetValidError,
    KeyWithoutRoleError,
    NotEnoughSignaturesError,
    OldKeySetError,
    UnknownKeyError,
    WrongPayloadTypeError,
)
from mev.wire.pb.envelope_pb2 import Envelope, KeySet, TrustedKey

M = TypeVar("M", bound=Message)
ROOT, COMMAND, AUDIT, AGENT, MODEL = "root", "command", "audit", "agent", "model"
MAX_KEYS = 256


class TrustStore:
    """Verifies and opens envelopes with one key set.

    :raises InvalidKeySetError: if `key_set` is inconsistent.
    """

    def __init__(self, key_set: KeySet) -> None:
        self._adopt(key_set)

    @property
    def epoch(self) -> int:
        """The epoch of the active key set."""
        return self._key_set.epoch

    @property
    def key_set(self) -> KeySet:
        """The active key set."""
        return self._key_set

    @property
    def model_role(self) -> str:
        """The role that signs model manifests.

        It is `model`, or `command` if no key of the set has the role `model`.
        """
        return MODEL if any(MODEL in key.roles for key in self._key_set.keys) else COMMAND

    def open(self, envelope: bytes | Envelope, message_type: type[M], role: str, now_ns: int) -> M:
        """Return the message in `envelope`, signed by as many distinct keys as `role` requires.

        :raises EnvelopeError: naming the first problem found.
        """
        return self.open_signed(envelope, message_type, role, now_ns).message

    def open_signed(
        self, envelope: bytes | Envelope, message_type: type[M], role: str, now_ns: int
    ) -> Opened[M]:
        """Return the message in `envelope` as :meth:`open` does, with the ids of its signers."""
        parsed = parse(envelope)
        signers = self.verify(parsed, payload_type(message_type), role, now_ns)
        return Opened(parse_message(message_type, parsed.payload), signers)

    def verify(
        self, envelope: Envelope, expected_type: str, role: str, now_ns: int
    ) -> tuple[str, ...]:
        """Return the key ids that signed `envelope`; its payload is not parsed.

        :raises EnvelopeError: naming the first problem found.
        """
        if envelope.payload_type != expected_type:
            raise WrongPayloadTypeError(
                f"{envelope.payload_type!r} where {expected_type} is expected"
            )
        return self._signers(envelope, role, now_ns)

    def rotate(
        self, envelope: bytes | Envelope, now_ns: int, keep: Callable[[KeySet], None] | None = None
    ) -> KeySet:
        """Activate the key set in `envelope`, and return it.

        `keep` stores it: it is called before the new set is activated; if it raises, the old one
        stays active.

        :raises OldKeySetError: if its epoch is not higher than the active one.
        :raises EnvelopeError: if too few root keys of the active set signed it, or it is
            inconsistent.
        """
        key_set = self.open(envelope, KeySet, ROOT, now_ns)
        if key_set.epoch <= self.epoch:
            raise OldKeySetError(f"a key set of epoch {key_set.epoch}; {self.epoch} is in force")
        successor = TrustStore(key_set)
        if keep:
            keep(key_set)
        self._adopt(successor.key_set)
        return key_set

    def _adopt(self, key_set: KeySet) -> None:
        check_key_set(key_set)
        self._key_set = key_set
        self._keys = {
            key.key_id: (key, Ed25519PublicKey.from_public_bytes(key.public_key))
            for key in key_set.keys
        }
        self._thresholds = {
            threshold.role: threshold.signatures for threshold in key_set.thresholds
        }

    def _signers(self, envelope: Envelope, role: str, now_ns: int) -> tuple[str, ...]:
        signed = pae(envelope.payload_type, envelope.payload)
        signers: dict[str, None] = {}
        reasons: list[EnvelopeError] = []
        for signature in envelope.signatures:
            key, public_key = self._keys.get(signature.key_id, (None, None))
            if key is None or public_key is None:
                reasons.append(
                    UnknownKeyError(
                        f"key {signature.key_id[:64]!r} is not in the key set of epoch {self.epoch}"
                    )
                )
                continue
            try:
                public_key.verify(signature.sig, signed)
            except InvalidSignature:
                raise BadSignatureError(f"the signature of key {key.key_id} does not fit") from None
            if (reason := _objection(key, role, now_ns)) is not None:
                reasons.append(reason)
            else:
                signers[key.key_id] = None
        needed = self._thresholds.get(role, 1)
        if len(signers) >= needed:
            return tuple(signers)
        # If all failed for one reason, report that reason rather than the missing number.
        if not signers and len({type(reason) for reason in reasons}) == 1:
            raise reasons[0]
        raise NotEnoughSignaturesError(
            f"{len(signers)} keys that may sign as {role!r} signed it; {needed} are needed"
        )


def check_key_set(key_set: KeySet) -> None:
    """Check that `key_set` is consistent.

    :raises InvalidKeySetError: if a key or its id is duplicated or invalid, or a threshold cannot
        be met.
    """
    if len(key_set.keys) > MAX_KEYS:
        raise InvalidKeySetError(f"{len(key_set.keys)} keys; {MAX_KEYS} are allowed")
    # The same key under two ids would count twice.
    for what in ("key_id", "public_key"):
        value, times = (
            Counter(getattr(key, what) for key in key_set.keys).most_common(1)[0]
            if key_set.keys
            else (None, 1)
        )
        if times > 1:
            raise InvalidKeySetError(f"{what} {value!r} comes {times} times")
    for key in key_set.keys:
        if not key.key_id or len(key.public_key) != 32:
            raise InvalidKeySetError(
                f"key {key.key_id!r} of {len(key.public_key)} bytes; a name and 32 bytes are needed"
            )
    roles = Counter(role for key in key_set.keys for role in set(key.roles))
    for threshold in key_set.thresholds:
        if not 1 <= threshold.signatures <= roles[threshold.role]:
            raise InvalidKeySetError(
                f"role {threshold.role!r} needs {threshold.signatures} signatures "
                f"and {roles[threshold.role]} keys have it"
            )
    if len({threshold.role for threshold in key_set.thresholds}) < len(key_set.thresholds):
        raise InvalidKeySetError("a role has two thresholds")


def _objection(key: TrustedKey, role: str, now_ns: int) -> EnvelopeError | None:
    if role not in key.roles:
        return KeyWithoutRoleError(f"key {key.key_id} may not sign as {role!r}")
    if key.not_before_ns and now_ns < key.not_before_ns:
        return KeyNotYetValidError(f"key {key.key_id} is not valid yet; check the clock")
    if key.not_after_ns and now_ns > key.not_after_ns:
        return KeyExpiredError(f"key {key.key_id} is no longer valid; check the clock")
    return None


@dataclass(frozen=True, slots=True)
class Retired:
    """A retired key set, and the time at which its successor was issued."""

    key_set: KeySet
    until_ns: int
