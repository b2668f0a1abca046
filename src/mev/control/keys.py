"""The keys of the control plane: root, signing, and the key set that names them."""

from dataclasses import dataclass
from pathlib import Path

from mev.core.files import write_atomically
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey, load_or_create
from mev.crypto.trust import AUDIT, COMMAND, ROOT, TrustStore
from mev.wire.pb.envelope_pb2 import Envelope, KeySet


@dataclass(slots=True)
class Keys:
    """The signing key in use and the key set in force, as it was signed."""

    folder: Path
    signing: SigningKey
    trust: TrustStore
    key_set_envelope: bytes

    def adopt(self, envelope: bytes, now_ns: int) -> None:
        """Put a newer key set in force, keep it, and take up the signing key that stands beside it on disk.

        :raises EnvelopeError: when it is not newer, or too few root keys signed it.
        """
        self.trust.rotate(envelope, now_ns, keep=lambda _: write_atomically(self.folder / _KEY_SET, envelope))
        self.key_set_envelope = envelope
        named = {key.key_id for key in self.trust.key_set.keys}
        if self.signing.key_id not in named and (self.folder / _SIGNING_KEY).exists():
            self.signing = load_or_create(self.folder / _SIGNING_KEY)


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
    return Keys(folder, signing, trust, envelope)


def rotation(folder: Path, now_ns: int) -> bytes:
    """Make a new signing key in `folder` and return the key set, signed by the root key, that replaces the old one by it."""
    root = load_or_create(folder / _ROOT_KEY)
    old = KeySet.FromString(Envelope.FromString((folder / _KEY_SET).read_bytes()).payload)
    (folder / _SIGNING_KEY).unlink(missing_ok=True)
    signing = load_or_create(folder / _SIGNING_KEY)
    keys = [root.trusted_for(ROOT), signing.trusted_for(COMMAND, AUDIT)]
    return seal(KeySet(epoch=old.epoch + 1, issued_at_ns=now_ns, keys=keys), root).SerializeToString()
