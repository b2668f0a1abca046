"""The sink's state for one partition: blocks, the running insert, and the next offset."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from prometheus_client import Counter

from mev.bus.kafka import Position
from mev.sink.block import InsertBlock

LOG = logging.getLogger(__name__)
LOST = Counter(
    "mev_sink_lost_total",
    "Messages that were gone from Kafka before they could be stored.",
    ["topic"],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLimits:
    """Limits of a block in rows, bytes and age; it is inserted when it reaches one of them."""

    rows: int
    size_bytes: int
    age_s: float


@dataclass(slots=True)
class Partition:
    """Blocks of one partition, oldest first.

    The first block may be in an insert; the last one is being filled.
    """

    at: Position
    limits: BlockLimits
    blocks: deque[InsertBlock] = field(default_factory=deque)
    insert: Future[None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    next_offset: int | None = None
    held_bytes: int = 0

    def extend(self, offsets: list[int], keys: list[bytes], values: list[bytes]) -> None:
        """Append records, in bulk if they are contiguous and fit into the last block."""
        size_bytes = sum(map(len, values))
        block = self.blocks[-1] if len(self.blocks) > bool(self.insert) else None
        follows = offsets[0] == self.next_offset and offsets[-1] - offsets[0] == len(offsets) - 1
        if block and follows and self._has_room(block, len(values), size_bytes):
            block.extend(offsets, keys, values, size_bytes)
            self.next_offset = offsets[-1] + 1
            self.held_bytes += size_bytes
        else:
            for offset, key, value in zip(offsets, keys, values, strict=True):
                self.append(offset, key, value)

    def append(self, offset: int, key: bytes, value: bytes) -> None:
        """Append one record."""
        lost = offset - self.next_offset if self.next_offset is not None else 0
        if lost > 0:
            LOST.labels(self.at[0]).inc(lost)
            LOG.error(
                "%s[%d]: %d messages were gone before they could be stored",
                *self.at,
                lost,
                extra={"action": "sink_lost"},
            )
        self.next_offset = offset + 1
        # A block is contiguous: gaps are only between blocks, where the reconciliation finds them.
        if (
            not self.blocks
            or lost > 0
            or self._is_full(self.blocks[-1])
            or (self.insert and len(self.blocks) == 1)
        ):
            self.blocks.append(InsertBlock(self.at))
        self.blocks[-1].append(offset, key, value)
        self.held_bytes += len(value)

    @property
    def is_behind(self) -> bool:
        """True if a full block waits behind the running insert, so that reading must pause."""
        return len(self.blocks) > 1 and self._is_full(self.blocks[1])

    def start_due(
        self,
        executor: Executor,
        store: Callable[[InsertBlock, threading.Event], None],
        *,
        all_now: bool = False,
    ) -> None:
        """Start to insert the first block if it is due and no insert is running."""
        if self.insert or not self.blocks:
            return
        block = self.blocks[0]
        aged = time.monotonic() - block.opened_at >= self.limits.age_s
        if all_now or aged or len(self.blocks) > 1 or self._is_full(block):
            self.insert = executor.submit(store, block, self.cancelled)

    def finish(self) -> int | None:
        """Return the offset to commit if the insert has completed, else None."""
        if not self.insert or not self.insert.done():
            return None
        self.insert.result()
        self.insert = None
        block = self.blocks.popleft()
        self.held_bytes -= block.size_bytes
        return block.next_offset

    def _has_room(self, block: InsertBlock, rows: int, size_bytes: int) -> bool:
        return (
            len(block.values) + rows <= self.limits.rows
            and block.size_bytes + size_bytes < self.limits.size_bytes
        )

    def _is_full(self, block: InsertBlock) -> bool:
        return len(block.values) >= self.limits.rows or block.size_bytes >= self.limits.size_bytes
