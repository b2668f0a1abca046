"""One key set for all replicas: the first that the control topic has, of those that our own signing key vouches for.

Every data folder begins with a root key and a key set of its own. Agents trust one key set, so a replica that joins others takes theirs,
and only while it has ordered nothing yet. Whoever has not the signing key can name no key set that counts here.
"""

import logging
from collections.abc import Sequence

from mev.control.errors import ForeignKeySetError
from mev.control.keys import Keys
from mev.wire.pb.envelope_pb2 import Envelope, KeySet

LOG = logging.getLogger(__name__)


def is_announced(keys: Keys, announced: Sequence[bytes]) -> bool:
    """Say whether the key set in force is among the vouched ones that were `announced`."""
    return _payload(keys.key_set_envelope) in map(_payload, announced)


def settle(keys: Keys, announced: Sequence[bytes], *, is_new: bool) -> None:
    """Put the key set in force that all replicas share, given what was `announced`, in that order.

    :raises ForeignKeySetError: when it is another one, and this replica is not new.
    """
    if not announced:
        return
    shared = max(announced, key=lambda envelope: KeySet.FromString(_payload(envelope)).epoch)  # of several the first
    if _payload(shared) == _payload(keys.key_set_envelope) or KeySet.FromString(_payload(shared)).epoch < keys.trust.epoch:
        return
    if not is_new:
        raise ForeignKeySetError(
            f"the control topic belongs to a control plane with another root key; to join it, move {keys.folder} away and start again; "
            "otherwise use another Kafka"
        )
    keys.join(shared)
    LOG.info("joined the replicas of key set epoch %d", keys.trust.epoch, extra={"action": "control_joined"})


def _payload(envelope: bytes) -> bytes:
    return Envelope.FromString(envelope).payload
