"""The keys of the control plane: root, signing, and the key set that names them.

A key set that another takes the place of is kept beside it: what was signed under it can still be told from what was not.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from mev.control.errors import RetiredKeyError
from mev.core.files import write_atomically
from mev.crypto.envelope import parse, parse_message, seal
from mev.crypto.errors import EnvelopeError
from mev.crypto.keys import SigningKey, load_or_create
from mev.crypto.retired import Retired
from mev.crypto.trust import AUDIT, COMMAND, ROOT, TrustStore
from mev.wire.pb.envelope_pb2 import Envelope, KeySet

LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Keys:
    """The signing key in use and the key set in force, as it was signed."""

    folder: Path
    signing: SigningKey
    trust: TrustStore
    key_set_envelope: bytes

    def adopt(self, envelope: bytes, now_ns: int) -> None:
        """Put a newer key set in force, keep it and the one before, and take up the signing key that stands beside it on disk.

        :raises EnvelopeError: when it is not newer, or too few root keys signed it.
        """

        def keep(_: KeySet) -> None:
            write_atomically(self.folder / f"{_KEY_SET}.{self.trust.epoch}", self.key_set_envelope)
            write_atomically(self.folder / _KEY_SET, envelope)

        self.trust.rotate(envelope, now_ns, keep=keep)
        self.key_set_envelope = envelope
        self.take_kept_key()

    def retired(self) -> list[Retired]:
        """Return the key sets that were in force before, the newest first. Blocks a little."""
        found, until_ns = [], self.trust.key_set.issued_at_ns
        epochs = (int(path.suffix[1:]) for path in self.folder.glob(f"{_KEY_SET}.*") if path.suffix[1:].isdecimal())
        for epoch in sorted((epoch for epoch in epochs if epoch < self.trust.epoch), reverse=True):
            key_set = KeySet.FromString(Envelope.FromString((self.folder / f"{_KEY_SET}.{epoch}").read_bytes()).payload)
            found.append(Retired(key_set, until_ns))
            until_ns = key_set.issued_at_ns
        return found

    def signer(self) -> SigningKey:
        """Return the signing key, as long as what it signs counts.

        :raises RetiredKeyError: when it was replaced, and this process has not the new one.
        """
        if self.is_retired:
            raise RetiredKeyError(
                "the signing key of this replica was replaced, and nobody obeys it any more; give this replica the new one "
                "(CTRL_SIGN_SK_HEX) and restart it; other replicas go on",
                retry_after_s=60,
            )
        return self.signing

    def join(self, envelope: bytes) -> None:
        """Put the key set of other replicas in force, whatever its roots are, and keep it. The caller has checked who vouches for it."""
        trust = TrustStore(KeySet.FromString(Envelope.FromString(envelope).payload))
        write_atomically(self.folder / _KEY_SET, envelope)
        self.trust, self.key_set_envelope = trust, envelope

    def take_kept_key(self) -> None:
        """Take up the signing key on disk where the one in use is no longer in the key set."""
        path = self.folder / _SIGNING_KEY
        if self.is_retired and path.exists() and _is_named(kept := load_or_create(path), self.trust.key_set):
            LOG.warning("the signing key in use was replaced; the one in %s is used", path, extra={"action": "signing_key"})
            self.signing = kept

    @property
    def is_retired(self) -> bool:
        """Whether the key set does not name the signing key in use, so that nobody obeys what it signs."""
        return not _is_named(self.signing, self.trust.key_set)

    def announcement(self) -> bytes:
        """Return the key set in force, signed by the signing key too: other replicas, which have it, know by that whose it is."""
        envelope = Envelope.FromString(self.key_set_envelope)
        if self.signing.key_id not in {signature.key_id for signature in envelope.signatures}:
            envelope.signatures.append(self.signing.sign(envelope.payload_type, envelope.payload))
        return envelope.SerializeToString()

    def vouches(self, envelope: bytes, now_ns: int) -> bool:
        """Say whether `envelope` is a key set that its own root keys and our signing key signed, and that names our signing key."""
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
    """Return the keys kept in `folder`, made at the first start; `seed_hex` takes the place of the signing key's file."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    signing = SigningKey.from_hex(seed_hex, key_id) if seed_hex else load_or_create(folder / _SIGNING_KEY, key_id)
    path = folder / _KEY_SET
    if not path.exists():
        root = load_or_create(folder / _ROOT_KEY)
        key_set = KeySet(epoch=1, issued_at_ns=now_ns, keys=[root.trusted_for(ROOT), signing.trusted_for(COMMAND, AUDIT)])
        write_atomically(path, seal(key_set, root).SerializeToString())
    envelope = path.read_bytes()
    trust = TrustStore(KeySet.FromString(Envelope.FromString(envelope).payload))
    keys = Keys(folder, signing, trust, envelope)
    keys.take_kept_key()
    return keys


def rotation(folder: Path, now_ns: int) -> bytes:
    """Make a new signing key in `folder` and return the key set, signed by the root key, that replaces the old one by it."""
    root = load_or_create(folder / _ROOT_KEY)
    old = KeySet.FromString(Envelope.FromString((folder / _KEY_SET).read_bytes()).payload)
    (folder / _SIGNING_KEY).unlink(missing_ok=True)
    signing = load_or_create(folder / _SIGNING_KEY)
    keys = [root.trusted_for(ROOT), signing.trusted_for(COMMAND, AUDIT)]
    return seal(KeySet(epoch=old.epoch + 1, issued_at_ns=now_ns, keys=keys), root, signing).SerializeToString()


def _is_named(key: SigningKey, key_set: KeySet) -> bool:
    return any(one.public_key == key.public_key and one.key_id == key.key_id and COMMAND in one.roles for one in key_set.keys)
