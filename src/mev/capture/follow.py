"""Follow the chain block by block, from where the last run stopped.

Slots are asked for one after the other. A slot without a block is normal and passed over; one that is not ready is
asked for again.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mev.capture.model import BadInputError
from mev.capture.rpc import Client, RpcError

SLOT_HAS_NO_BLOCK = frozenset({-32001, -32007, -32009})  # cleaned up, skipped, missing in long-term storage
BLOCK_NOT_READY = frozenset({-32004, -32014, -32016})  # not available, status not yet available, context not reached


@dataclass(frozen=True, slots=True)
class Block:
    """One produced block with its slot in it, or ``value`` None for a slot that has none; ``tip`` is the newest slot."""

    slot: int
    value: dict[str, Any] | None
    tip: int


class Position:
    """The next slot to ask for, kept in a small file that is replaced whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int | None:
        """Return the slot, or nothing when none was kept."""
        try:
            slot = orjson.loads(self._path.read_bytes())["next_slot"]
        except FileNotFoundError:
            return None
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise BadInputError(f"not a capture position: {error}; delete it to start at the tip", place=str(self._path)) from None
        if not isinstance(slot, int) or slot < 0:
            raise BadInputError("not a capture position; delete it to start at the tip", place=str(self._path))
        return slot

    def write(self, slot: int) -> None:
        """Keep the slot, so that a crash leaves either the old or the new one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(orjson.dumps({"next_slot": slot}))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


class Follower:
    """Yields every block from a slot on, for ever unless told where to stop."""

    def __init__(
        self,
        client: Client,
        *,
        commitment: str = "confirmed",
        poll_s: float = 0.4,
        not_ready_polls: int = 150,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Set up a follower.

        ``poll_s`` is the pause at the tip, about a slot's length. A slot below the tip that stays unready for
        ``not_ready_polls`` polls is given up as having no block.
        """
        self._client = client
        self._commitment = commitment
        self._poll_s = poll_s
        self._not_ready_polls = not_ready_polls
        self._sleep = sleep

    def blocks(self, start: int | None, *, stop_after: int | None = None) -> Iterator[Block]:
        """Yield the slots from ``start``, or from the tip, to ``stop_after``, or without end."""
        tip = self._client.slot(self._commitment)
        slot = tip if start is None else start
        while stop_after is None or slot <= stop_after:
            while slot > tip:
                self._sleep(self._poll_s)
                tip = self._client.slot(self._commitment)
            yield Block(slot, self._block(slot), tip)
            slot += 1

    def _block(self, slot: int) -> dict[str, Any] | None:
        options = {
            "encoding": "json",
            "commitment": self._commitment,
            "maxSupportedTransactionVersion": 0,
            "transactionDetails": "full",
            "rewards": False,
        }
        for _ in range(self._not_ready_polls):
            answer = self._client.call("getBlock", [slot, options])
            if answer.code in SLOT_HAS_NO_BLOCK:
                return None
            if isinstance(answer.result, dict):
                return {**answer.result, "slot": slot}
            if answer.code is not None and answer.code not in BLOCK_NOT_READY:
                raise RpcError(f"getBlock {slot}: {answer.message}")
            self._sleep(self._poll_s)
        return None
