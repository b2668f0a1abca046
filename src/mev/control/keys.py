"""The keys of the control plane: root key, signing key, and the key set that lists them.

Replaced key sets are stored too, so that older signatures can still be verified.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mev.control.errors import ForeignKeySetError, RetiredKeyError
from mev.core.files import write_atomically
from mev.crypto.envelope import parse, parse_message, seal
from mev.crypto.errors import EnvelopeError
from mev.crypto.keys import SigningKey, load_or_create
from mev.crypto.trust import AUDIT, COMMAND, MODEL, ROOT, Retired, TrustStore
from mev.wire.pb.envelope_pb2 import Envelope, KeySet, TrustedKey

LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Keys:
    """The current signing key, and the active key set with its envelope."""

    folder: Path
    signing: SigningKey
    trust: TrustStore
    key_set_envelope: bytes

    def adopt(self, envelope: bytes, now_ns: int) -> None:
        """Activate and store a newer key set; then use the signing key on disk if needed.

        The old key set is stored too.

        :raises EnvelopeError: if it is not newer, or too few root keys signed it.
        """

        def keep(_: KeySet) -> None:
            write_atomically(self.folder / f"{_KEY_SET}.{self.trust.epoch}", self.key_set_envelope)
            write_atomically(self.folder / _KEY_SET, envelope)

        self.trust.rotate(envelope, now_ns, keep=keep)
        self.key_set_envelope = envelope
        self.take_kept_key()

    def retired(self) -> list[Retired]:
        """Return the earlier key sets, newest first; blocks briefly."""
        found, until_ns = [], self.trust.key_set.issued_at_ns
        epochs = (
            int(path.suffix[1:])
            for path in self.folder.glob(f"{_KEY_SET}.*")
            if path.suffix[1:].isdecimal()
        )
        for epoch in sorted((epoch for epoch in epochs if epoch < self.trust.epoch), reverse=True):
            key_set = KeySet.FromString(
                Envelope.FromString((self.folder / f"{_KEY_SET}.{epoch}").read_bytes()).payload
            )
            found.append(Retired(key_set, until_ns))
            until_ns = key_set.issued_at_ns
        return found

    def stored_trust(self) -> list[TrustStore]:
        """Return what verifies stored messages: active key set, then earlier ones; blocks briefly.

        The validity periods of keys are ignored: a message may have been signed during them.
        """
        key_sets = [self.trust.key_set, *(one.key_set for one in self.retired())]
        return [TrustStore(_without_periods(key_set)) for key_set in key_sets]

    def signer(self) -> SigningKey:
        """Return the signing key, if the active key set lists it.

        :raises RetiredKeyError: if it was replaced, and this process does not have the new one.
        """
        if self.is_retired:
            raise RetiredKeyError(
                "the signing key of this replica was replaced, and agents ignore its commands; "
                "give this replica the new one "
                "(CTRL_SIGN_SK_HEX) and restart it; other replicas are not affected",
                retry_after_s=60,
            )
        return self.signing

    def model_signer(self) -> SigningKey:
        """Return the key that signs model manifests.

        It is a separate key, or the signing key if the key set has no key with the role `model`.

        :raises RetiredKeyError: as for :meth:`signer`.
        """
        signing = self.signer()
        return signing if self.trust.model_role == COMMAND else _model_key(signing)

    def join(self, envelope: bytes) -> None:
        """Activate and store the key set of other replicas; the caller has verified it."""
        trust = TrustStore(KeySet.FromString(Envelope.FromString(envelope).payload))
        write_atomically(self.folder / _KEY_SET, envelope)
        self.trust, self.key_set_envelope = trust, envelope

    def take_kept_key(self) -> None:
        """Use the signing key on disk if the key set does not list the current one any more."""
        path = self.folder / _SIGNING_KEY
        if (
            self.is_retired
            and path.exists()
            and _is_named(kept := load_or_create(path), self.trust.key_set)
        ):
            LOG.warning(
                "the signing key in use was replaced; the one in %s is used",
                path,
                extra={"action": "signing_key"},
            )
            self.signing = kept

    @property
    def is_retired(self) -> bool:
        """True if the key set does not list the signing key, so that agents ignore its commands."""
        return not _is_named(self.signing, self.trust.key_set)

    def announcement(self) -> bytes:
        """Return the active key set, also signed by the signing key, for other replicas.

        They have the same signing key, and recognise the key set by that signature.
        """
        envelope = Envelope.FromString(self.key_set_envelope)
        if self.signing.key_id not in {signature.key_id for signature in envelope.signatures}:
            envelope.signatures.append(self.signing.sign(envelope.payload_type, envelope.payload))
        return envelope.SerializeToString()

    def vouches(self, envelope: bytes, now_ns: int) -> bool:
        """Return whether `envelope` is a key set that its root keys and our signing key signed.

        It must list our signing key.
        """
        try:
            key_set = parse_message(KeySet, parse(envelope).payload)
            TrustStore(key_set).open(envelope, KeySet, ROOT, now_ns)
            ours = TrustStore(KeySet(epoch=1, keys=[self.signing.trusted_for(ROOT)]))
            ours.open(envelope, KeySet, ROOT, now_ns)
        except EnvelopeError:
            return False
        return _is_named(self.signing, key_set)


_ROOT_KEY, _SIGNING_KEY, _KEY_SET = "root-key", "signing-key", "key-set"


def open_keys(folder: Path, *, seed_hex: str | None, key_id: str | None, now_ns: int) -> Keys:
    """Return the keys in `folder`, creating them at the first start.

    `seed_hex` replaces the file of the signing key.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    signing = (
        SigningKey.from_hex(seed_hex, key_id)
        if seed_hex
        else load_or_create(folder / _SIGNING_KEY, key_id)
    )
    path = folder / _KEY_SET
    if not path.exists():
        root = load_or_create(folder / _ROOT_KEY)
        key_set = KeySet(epoch=1, issued_at_ns=now_ns, keys=_trusted(root, signing))
        write_atomically(path, seal(key_set, root).SerializeToString())
    envelope = path.read_bytes()
    trust = TrustStore(KeySet.FromString(Envelope.FromString(envelope).payload))
    keys = Keys(folder, signing, trust, envelope)
    keys.take_kept_key()
    return keys


def rotation(folder: Path, now_ns: int) -> bytes:
    """Create a new signing key in `folder`; return the key set that replaces the old key by it.

    The root key signs the key set.
    """
    root = load_or_create(folder / _ROOT_KEY)
    old = KeySet.FromString(Envelope.FromString((folder / _KEY_SET).read_bytes()).payload)
    (folder / _SIGNING_KEY).unlink(missing_ok=True)
    signing = load_or_create(folder / _SIGNING_KEY)
    key_set = KeySet(epoch=old.epoch + 1, issued_at_ns=now_ns, keys=_trusted(root, signing))
    return seal(key_set, root, signing).SerializeToString()


def _trusted(root: SigningKey, signing: SigningKey) -> list[TrustedKey]:
    return [
        root.trusted_for(ROOT),
        signing.trusted_for(COMMAND, AUDIT),
        _model_key(signing).trusted_for(MODEL),
    ]


def _model_key(signing: SigningKey) -> SigningKey:
    """Return the key that signs model manifests, derived from the signing key.

    Replicas with the same signing key therefore have the same model key.
    """
    return signing.derived("model key")


def _without_periods(key_set: KeySet) -> KeySet:
    copy = KeySet.FromString(key_set.SerializeToString())
    for key in copy.keys:
        key.not_before_ns = key.not_after_ns = 0
    return copy


def _is_named(key: SigningKey, key_set: KeySet) -> bool:
    return any(
        one.public_key == key.public_key and one.key_id == key.key_id and COMMAND in one.roles
        for one in key_set.keys
    )


def is_announced(keys: Keys, announced: Sequence[bytes]) -> bool:
    """Return whether the active key set is among those `announced`."""
    return _payload(keys.key_set_envelope) in map(_payload, announced)


def join_announced(keys: Keys, announced: Sequence[bytes], *, is_new: bool) -> None:
    """Activate the key set shared by all replicas, given those `announced`, in that order.

    :raises ForeignKeySetError: if it is another one, and this replica is not new.
    """
    if not announced:
        return
    # Of several with the same epoch, the first.
    shared = max(announced, key=lambda envelope: KeySet.FromString(_payload(envelope)).epoch)
    if (
        _payload(shared) == _payload(keys.key_set_envelope)
        or KeySet.FromString(_payload(shared)).epoch < keys.trust.epoch
    ):
        return
    if not is_new:
        raise ForeignKeySetError(
            "the control topic belongs to a control plane with another root key; "
            f"to join it, move {keys.folder} away and start again; "
            "otherwise use another Kafka"
        )
    keys.join(shared)
    LOG.info(
        "joined the replicas of key set epoch %d",
        keys.trust.epoch,
        extra={"action": "control_joined"},
    )


def _payload(envelope: bytes) -> bytes:
    return Envelope.FromString(envelope).payload
