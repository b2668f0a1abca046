"""Whose signature counts for what: a key set in force, and the messages it lets through.

Every check is made on the bytes as they came. Signatures of keys that are not in the set are passed over, so that two key sets can
overlap while one replaces the other; a signature that does not fit the key it names is never passed over.
"""

from collections import Counter
from collections.abc import Callable
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
ROOT, COMMAND, AUDIT, AGENT = "root", "command", "audit", "agent"
MAX_KEYS = 256


class TrustStore:
    """Opens envelopes under one key set.

    :raises InvalidKeySetError: when `key_set` contradicts itself.
    """

    def __init__(self, key_set: KeySet) -> None:
        self._adopt(key_set)

    @property
    def epoch(self) -> int:
        """The epoch of the key set in force."""
        return self._key_set.epoch

    @property
    def key_set(self) -> KeySet:
        """The key set in force."""
        return self._key_set

    def open(self, envelope: bytes | Envelope, message_type: type[M], role: str, now_ns: int) -> M:
        """Return the message in `envelope`, signed by as many distinct keys as `role` needs.

        :raises EnvelopeError: naming the first thing that is wrong.
        """
        return self.open_signed(envelope, message_type, role, now_ns).message

    def open_signed(self, envelope: bytes | Envelope, message_type: type[M], role: str, now_ns: int) -> Opened[M]:
        """Return the message in `envelope` as :meth:`open` does, and who signed it."""
        parsed = parse(envelope)
        signers = self.verify(parsed, payload_type(message_type), role, now_ns)
        return Opened(parse_message(message_type, parsed.payload), signers)

    def verify(self, envelope: Envelope, expected_type: str, role: str, now_ns: int) -> tuple[str, ...]:
        """Return who signed `envelope`, whose payload may be of any kind: it is used only when this does not raise.

        :raises EnvelopeError: naming the first thing that is wrong.
        """
        if envelope.payload_type != expected_type:
            raise WrongPayloadTypeError(f"{envelope.payload_type!r} where {expected_type} is expected")
        return self._signers(envelope, role, now_ns)

    def rotate(self, envelope: bytes | Envelope, now_ns: int, keep: Callable[[KeySet], None] | None = None) -> KeySet:
        """Put the key set in `envelope` in force, and return it.

        `keep` stores it: it is called before the new set takes effect, and when it fails the old one stays.

        :raises OldKeySetError: when its epoch is not higher.
        :raises EnvelopeError: when too few root keys of the set in force signed it, or it contradicts itself.
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
        self._keys = {key.key_id: (key, Ed25519PublicKey.from_public_bytes(key.public_key)) for key in key_set.keys}
        self._thresholds = {threshold.role: threshold.signatures for threshold in key_set.thresholds}

    def _signers(self, envelope: Envelope, role: str, now_ns: int) -> tuple[str, ...]:
        signed = pae(envelope.payload_type, envelope.payload)
        signers: dict[str, None] = {}
        reasons: list[EnvelopeError] = []
        for signature in envelope.signatures:
            key, public_key = self._keys.get(signature.key_id, (None, None))
            if key is None or public_key is None:
                reasons.append(UnknownKeyError(f"key {signature.key_id[:64]!r} is not in the key set of epoch {self.epoch}"))
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
        # When nothing counted for one reason, that reason says more than the number that is missing.
        if not signers and len({type(reason) for reason in reasons}) == 1:
            raise reasons[0]
        raise NotEnoughSignaturesError(f"{len(signers)} keys that may sign as {role!r} signed it; {needed} are needed")


def check_key_set(key_set: KeySet) -> None:
    """Check that `key_set` can be used as it stands.

    :raises InvalidKeySetError: when a key or its name comes twice, is no key, or a threshold can never be met.
    """
    if len(key_set.keys) > MAX_KEYS:
        raise InvalidKeySetError(f"{len(key_set.keys)} keys; {MAX_KEYS} are allowed")
    # The same key under two names would count as two people.
    for what in ("key_id", "public_key"):
        value, times = Counter(getattr(key, what) for key in key_set.keys).most_common(1)[0] if key_set.keys else (None, 1)
        if times > 1:
            raise InvalidKeySetError(f"{what} {value!r} comes {times} times")
    for key in key_set.keys:
        if not key.key_id or len(key.public_key) != 32:
            raise InvalidKeySetError(f"key {key.key_id!r} of {len(key.public_key)} bytes; a name and 32 bytes are needed")
    roles = Counter(role for key in key_set.keys for role in set(key.roles))
    for threshold in key_set.thresholds:
        if not 1 <= threshold.signatures <= roles[threshold.role]:
            raise InvalidKeySetError(
                f"role {threshold.role!r} needs {threshold.signatures} signatures and {roles[threshold.role]} keys have it"
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
