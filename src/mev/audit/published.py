"""Reading back what was published on the audit topic."""

import time
import uuid

from mev.bus.errors import BrokerUnavailableError
from mev.bus.group import GroupConsumer
from mev.bus.kafka import Brokers
from mev.bus.offsets import all_group_offsets
from mev.wire.topics import AUDIT

_POLL_S = 0.2


def published_checkpoints(brokers: Brokers, *, timeout_s: float) -> list[bytes]:
    """Return every message that the audit topic holds. Blocks.

    :raises BrokerUnavailableError: when they cannot be read within `timeout_s`.
    """
    group = f"mev-audit-verify-{uuid.uuid4()}"
    offsets = all_group_offsets(brokers, group, [AUDIT], timeout_s=timeout_s)
    wanted = {at: latest for at, (earliest, latest, _) in offsets.items() if latest > earliest}
    consumer = GroupConsumer(brokers, group, [AUDIT], on_revoked=lambda _: None, timeout_s=timeout_s)
    deadline = time.monotonic() + timeout_s
    messages: list[bytes] = []
    try:
        while wanted:
            if time.monotonic() > deadline:
                raise BrokerUnavailableError(f"{AUDIT} was not read to its end within {timeout_s:g} s", retry_after_s=5)
            for batch in consumer.read(_POLL_S):
                at = batch.topic, batch.partition
                messages += batch.values
                if batch.offsets[-1] + 1 >= wanted.get(at, 0):
                    wanted.pop(at, None)
    finally:
        consumer.close()
    return messages
