"""Keys trusted to sign checkpoints: a key set beside the journal, for offline verification."""

import logging
from pathlib import Path

from mev.core.files import write_atomically
from mev.crypto.envelope import parse_message
from mev.crypto.errors import EnvelopeError
from mev.crypto.keys import SigningKey
from mev.crypto.trust import AUDIT, TrustStore
from mev.wire.pb.envelope_pb2 import KeySet

LOG = logging.getLogger(__name__)
_FILE = "trusted-keys"


def read_trusted(path: Path) -> TrustStore:
    """Return the keys in the key set at `path`.

    :raises EnvelopeError: when it contains no key set.
    """
    return TrustStore(parse_message(KeySet, path.read_bytes()))


def trusted_file(folder: Path) -> Path:
    """Return the file of the trusted keys in `folder`."""
    return folder / _FILE


def trust(folder: Path, key: SigningKey) -> TrustStore:
    """Return the trusted keys of `folder`; `key` is added if missing."""
    path = trusted_file(folder)
    try:
        key_set = read_trusted(path).key_set if path.exists() else KeySet()
    except EnvelopeError as error:
        LOG.error(
            "%s: %s; it is written again with the key of now",
            path,
            error.detail,
            extra={"action": "audit_damaged"},
        )
        key_set = KeySet()
    if not any(
        known.key_id == key.key_id and known.public_key == key.public_key for known in key_set.keys
    ):
        key_set.keys.append(key.trusted_for(AUDIT))
        key_set.epoch += 1
        write_atomically(path, key_set.SerializeToString())
    return TrustStore(key_set)
