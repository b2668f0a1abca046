"""Follower of the chain: reads block by block from the last position.

Each slot ends as read, skipped or missing. A slot whose block is not available yet is deferred and
requested again with growing pauses while the next slots continue; it is missing after the time
limit. Failures of the node itself are waited out without a limit.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import orjson

from mev.capture.decode import NEWEST_VERSION
from mev.capture.gaps import replace_file
from mev.capture.model import LAST_BLOCK_TIME_S, BadInputError
from mev.capture.rpc import SLOT_HAS_NO_BLOCK, AnswerTooLargeError, RpcAnswer, RpcClient, RpcError

# Not available, status not yet available, context not reached.
_NOT_THERE_YET = frozenset({-32004, -32014, -32016})
_CLEANED_UP = -32001
_UNSUPPORTED_VERSION = -32015
_ANY_VERSION = 255
_REASONS = {
    _CLEANED_UP: "the node has deleted its block (-32001)",
    _UNSUPPORTED_VERSION: "it has a transaction of a version that the node does not give out "
    "(-32015)",
}
# This far behind the tip, a missing block is unlikely to arrive.
_NEAR_TIP = 32
# Ten minutes behind the tip, the node lacks the block, or another machine behind it has it.
_OLD_SLOTS = 1500
_OLD_GIVE_UP_AFTER_S = 30.0
_FARTHEST_PARENT = 64
_LONGEST_RUN_OF_SKIPPED = 64
_SLOT_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.4
_PAUSE_GROWTH = 1.5
_PATIENCE_S = 3.0
_FIRST_AVAILABLE_S = 60.0


class SlotOutcome(Enum):
    """Outcome of the request for a slot."""

    READ = "read"
    SKIPPED = "skipped"
    MISSING = "missing"
    LATE = "late"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotResult:
    """Outcome of a slot, or of the range up to ``last`` that the node lacks.

    ``value`` is the block of a read slot, with its slot number; ``reason`` says why a slot is
    missing. ``tip`` is the newest slot, and ``next_slot`` the resume position without loss.
    """

    slot: int
    last: int
    outcome: SlotOutcome
    value: dict[str, Any] | None = None
    reason: str = ""
    tip: int = 0
    next_slot: int = 0


@dataclass(slots=True)
class _Late:
    """A deferred slot; ``good`` is the number of completed slots at that time.

    ``before`` is the last slot before it that was not reported as skipped.
    """

    before: int
    reason: str
    is_trouble: bool
    due_s: float
    pause_s: float
    give_up_at_s: float
    good: int


@dataclass(frozen=True, slots=True)
class _Found:
    """Outcome of one request for a slot; ``is_trouble`` if the node failed."""

    outcome: SlotOutcome
    value: dict[str, Any] | None = None
    reason: str = ""
    is_trouble: bool = False


class SlotFile:
    """The next slot to request, stored in a file that is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int | None:
        """Return the slot, or None if none is stored."""
        try:
            slot = orjson.loads(self._path.read_bytes())["next_slot"]
        except FileNotFoundError:
            return None
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise BadInputError(
                f"not a capture position: {error}; delete it to start at the tip",
                place=str(self._path),
            ) from None
        if not isinstance(slot, int) or slot < 0:
            raise BadInputError(
                "not a capture position; delete it to start at the tip", place=str(self._path)
            )
        return slot

    def write(self, slot: int) -> None:
        """Store the slot atomically."""
        replace_file(self._path, {"next_slot": slot})


class SlotFollower:
    """Yields the outcome of every slot from a start, without end or to a stop."""

    def __init__(
        self,
        client: RpcClient,
        *,
        commitment: str = "confirmed",
        poll_s: float = 0.4,
        give_up_after_s: float = 90.0,
        longest_pause_s: float = 10.0,
        most_late: int = 100,
        report: Callable[[str], None] = lambda _line: None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Configure a follower.

        ``poll_s`` is the pause at the tip, about the duration of a slot. An unavailable slot is
        requested again, with pauses up to ``longest_pause_s``, for ``give_up_after_s`` (30 s at
        most if it is ten minutes behind the tip); at ``most_late`` deferred slots no new slot is
        requested. ``report`` receives a line when the node fails and when it recovers.
        """
        self._client = client
        self._commitment = commitment
        self._poll_s = poll_s
        self._give_up_after_s = give_up_after_s
        self._longest_pause_s = longest_pause_s
        self._most_late = most_late
        self._report = report
        self._sleep = sleep
        self._clock = clock
        self._late: dict[int, _Late] = {}
        self._tip = 0
        self._slot = 0
        self._good = 0
        self._last_read: int | None = None
        self._before = 0  # the last slot that was not reported as skipped
        self._outage_s = 0.0
        self._in_trouble = False
        self._is_ending = False
        self._first_available: tuple[float, int] | None = None

    def blocks(self, start: int | None, *, stop_after: int | None = None) -> Iterator[SlotResult]:
        """Yield the slots from ``start`` (None: the tip) to ``stop_after`` (None: without end).

        A deferred slot follows its successors. Raises :class:`~mev.capture.rpc.RpcError` only if
        the node does not answer at the start.
        """
        self._tip = self._client.slot(self._commitment)
        self._slot = self._tip if start is None else start
        self._is_ending, self._last_read, self._before = False, None, self._slot - 1
        self._say_when_ahead()
        while stop_after is None or self._slot <= stop_after:
            if self._slot > self._tip:
                self._sleep(self._poll_s)
                self._refresh_tip()
            elif len(self._late) >= self._most_late:
                self._wait_for_late()
            else:
                yield from self._next(stop_after)
            yield from self._ask_late()
        self._is_ending = True
        while self._late:
            self._wait_for_late()
            yield from self._ask_late()
        if stop_after is not None:
            yield from self._check_skipped_at_end(stop_after)

    def _say_when_ahead(self) -> None:
        """Report that the node's chain ends before the first slot: it may be another chain."""
        if self._slot - self._tip > _NEAR_TIP:
            self._report(f"the node's newest slot is {self._tip}; waiting for slot {self._slot}")

    def _next(self, stop_after: int | None) -> Iterator[SlotResult]:
        slot = self._slot
        found = self._ask(slot)
        waited_s, pause_s = 0.0, _FIRST_PAUSE_S
        while (
            found.outcome is SlotOutcome.LATE
            and self._tip - slot < _NEAR_TIP
            and waited_s < _PATIENCE_S
        ):
            self._sleep(pause_s)
            waited_s, pause_s = waited_s + pause_s, pause_s * _PAUSE_GROWTH
            found = self._ask(slot)
        first = self._first(slot) if found.outcome in (SlotOutcome.LATE, SlotOutcome.MISSING) else 0
        if slot < first:
            last = first - 1 if stop_after is None else min(first - 1, stop_after)
            self._slot, self._before = last + 1, last
            found = _Found(SlotOutcome.MISSING, reason=f"the node's first block is of slot {first}")
            yield self._block(slot, found, last)
            return
        self._slot += 1
        if found.outcome is SlotOutcome.LATE:
            self._put_aside(slot, found)
            self._before = slot
            return
        if found.value is not None:
            parent, before = found.value.get("parentSlot"), self._before
            for late, deferred in self._skipped_before(slot, parent):
                before = min(before, deferred.before)
                yield self._settled(late, _Found(SlotOutcome.SKIPPED))
            yield from self._check_skipped(before, slot, parent)
            self._last_read = slot
        if found.outcome is not SlotOutcome.SKIPPED:
            self._before = slot
        yield self._block(slot, found)

    def _put_aside(self, slot: int, found: _Found) -> None:
        if found.is_trouble and not self._in_trouble:
            self._in_trouble = True
            self._report(f"slot {slot}: {found.reason}; asking again")
        now = self._now()
        is_old = self._tip - slot > _OLD_SLOTS and not found.is_trouble
        give_up_after_s = (
            min(self._give_up_after_s, _OLD_GIVE_UP_AFTER_S) if is_old else self._give_up_after_s
        )
        self._late[slot] = _Late(
            self._before,
            found.reason,
            found.is_trouble,
            now + _FIRST_PAUSE_S,
            _FIRST_PAUSE_S,
            now + give_up_after_s,
            self._good,
        )

    def _skipped_before(self, slot: int, parent: Any) -> list[tuple[int, _Late]]:
        """Return the deferred slots that the block just read proves to be skipped."""
        if not isinstance(parent, int) or not self._is_known(slot, parent):
            return []
        return [(late, self._late[late]) for late in sorted(self._late) if parent < late < slot]

    def _check_skipped(self, before: int, slot: int, parent: Any) -> Iterator[SlotResult]:
        """Read the slots after ``before`` that a node reported as skipped wrongly.

        The parent of the block of ``slot`` has a block, and so has that one's parent. After a long
        run, the slots are a gap at once: a node that restarted from a snapshot answers -32007 for
        slots it never had, as for skipped slots.
        """
        while isinstance(parent, int) and before < parent < slot and parent not in self._late:
            is_long = slot - before > _LONGEST_RUN_OF_SKIPPED
            found = None if is_long else self._ask(parent)
            if found is None or found.value is None:
                why = "the node went on from a snapshot" if is_long else "the node denies its block"
                reason = f"{why}: slot {slot} follows on {parent}"
                last = min(parent, self._slot - 1)
                yield self._block(before + 1, _Found(SlotOutcome.MISSING, reason=reason), last)
                return
            yield self._block(parent, found)
            slot, parent = parent, found.value.get("parentSlot")

    def _check_skipped_at_end(self, stop_after: int) -> Iterator[SlotResult]:
        """Check the block after a run of skipped slots at the end of the range."""
        if stop_after == self._before:
            return
        for slot in range(stop_after + 1, min(stop_after + _LONGEST_RUN_OF_SKIPPED, self._tip) + 1):
            found = self._ask(slot)
            if found.value is not None:
                checked = self._check_skipped(self._before, slot, found.value.get("parentSlot"))
                yield from (one for one in checked if one.slot <= stop_after)
            if found.outcome is not SlotOutcome.SKIPPED:
                return

    def _is_known(self, slot: int, parent: int) -> bool:
        """Return whether a block's parent was read or is deferred.

        Then the chain has no other gap.
        """
        if self._last_read is None:
            return slot - parent <= _FARTHEST_PARENT
        return parent == self._last_read or parent in self._late

    def _wait_for_late(self) -> None:
        due_s = min(late.due_s for late in self._late.values())
        self._sleep(max(0.0, due_s - self._now()))

    def _ask_late(self) -> Iterator[SlotResult]:
        """Request the deferred slots that are due; give up those above the time limit."""
        for slot in sorted(self._late):
            late = self._late[slot]
            if late.due_s > self._now():
                continue
            found = self._ask(slot)
            if found.outcome is not SlotOutcome.LATE:
                if found.value is not None:
                    yield from self._check_skipped(late.before, slot, found.value.get("parentSlot"))
                yield self._settled(slot, found)
                continue
            late.reason, late.is_trouble = found.reason, found.is_trouble
            late.pause_s = min(late.pause_s * _PAUSE_GROWTH, self._longest_pause_s)
            late.due_s = self._now() + late.pause_s
            if self._is_given_up(late):
                yield self._settled(slot, _Found(SlotOutcome.MISSING, reason=late.reason))

    def _is_given_up(self, late: _Late) -> bool:
        # A node that fails for every slot says nothing about this slot.
        is_the_slots = not late.is_trouble or self._good > late.good or self._is_ending
        return is_the_slots and self._now() >= late.give_up_at_s

    def _settled(self, slot: int, found: _Found) -> SlotResult:
        del self._late[slot]
        return self._block(slot, found)

    def _block(self, slot: int, found: _Found, last: int | None = None) -> SlotResult:
        if found.outcome in (SlotOutcome.READ, SlotOutcome.SKIPPED):
            self._good += 1
            if self._in_trouble and not any(late.is_trouble for late in self._late.values()):
                self._in_trouble = False
                self._report("the node gives out blocks again")
        return SlotResult(
            slot=slot,
            last=slot if last is None else last,
            outcome=found.outcome,
            value=found.value,
            reason=found.reason,
            tip=self._tip,
            # Skipped slots are certain only once a later block has been read.
            next_slot=min([self._before, *(late.before for late in self._late.values())]) + 1,
        )

    def _now(self) -> float:
        """Return the time without the node's outages."""
        return self._clock() - self._outage_s

    def _refresh_tip(self) -> None:
        """Request the newest slot until the node answers."""
        began_s = self._clock()
        pause_s, is_told = self._poll_s, False
        while True:
            try:
                self._tip = self._client.slot(self._commitment, attempts=_SLOT_ATTEMPTS)
            except RpcError as error:
                if not is_told:
                    self._report(f"the node does not answer: {error.detail}; waiting for it")
                    is_told = True
                pause_s = min(pause_s * 2, self._longest_pause_s)
                self._sleep(pause_s)
            else:
                break
        if is_told:
            outage_s = self._clock() - began_s
            self._outage_s += outage_s
            self._report(f"the node answers again after {outage_s:.0f} s")

    def _first(self, slot: int) -> int:
        """Return the first slot that the node has, or 0 if unknown or near the tip."""
        if self._tip - slot < _NEAR_TIP:
            return 0
        if (
            self._first_available is None
            or self._clock() - self._first_available[0] > _FIRST_AVAILABLE_S
        ):
            try:
                found = self._client.call("getFirstAvailableBlock", [], attempts=1).result
            except RpcError:
                found = None
            first = found if isinstance(found, int) and found <= self._tip else 0
            self._first_available = self._clock(), first
        return self._first_available[1]

    def _ask(self, slot: int) -> _Found:
        try:
            answer = self._get_block(slot, NEWEST_VERSION)
            if answer.code == _UNSUPPORTED_VERSION:
                # Other transactions of the block are readable whatever the version.
                answer = self._get_block(slot, _ANY_VERSION)
        except AnswerTooLargeError as error:
            return _Found(SlotOutcome.MISSING, reason=error.detail)
        except RpcError as error:
            self._refresh_tip()
            return _Found(SlotOutcome.LATE, reason=error.detail, is_trouble=True)
        return _found(answer, slot)

    def _get_block(self, slot: int, newest_version: int) -> RpcAnswer:
        options = {
            "encoding": "json",
            "commitment": self._commitment,
            "maxSupportedTransactionVersion": newest_version,
            "transactionDetails": "full",
            "rewards": False,
        }
        return self._client.call("getBlock", [slot, options], attempts=_SLOT_ATTEMPTS)


def _found(answer: RpcAnswer, slot: int) -> _Found:
    if answer.code in SLOT_HAS_NO_BLOCK:
        return _Found(SlotOutcome.SKIPPED)
    if answer.code in _NOT_THERE_YET:
        return _Found(SlotOutcome.LATE, reason=f"the node has no block of it ({answer.code})")
    if answer.code is not None:
        return _Found(
            SlotOutcome.MISSING,
            reason=_REASONS.get(answer.code, f"the node refuses it: {answer.message}"),
        )
    if answer.result is None:
        return _Found(SlotOutcome.LATE, reason="the node has no block of it (null)")
    if not _is_block_of(answer.result, slot):
        return _Found(
            SlotOutcome.LATE,
            reason="the node's answer is not a block of this slot",
            is_trouble=True,
        )
    return _Found(SlotOutcome.READ, value={**answer.result, "slot": slot})


def _is_block_of(result: Any, slot: int) -> bool:
    if not isinstance(result, dict) or not isinstance(result.get("transactions"), list):
        return False
    parent, time_s = result.get("parentSlot"), result.get("blockTime")
    # The first block of a chain also has parent 0.
    follows = parent is None or (type(parent) is int and 0 <= parent < max(slot, 1))
    return follows and (
        time_s is None or (type(time_s) is int and 0 <= time_s <= LAST_BLOCK_TIME_S)
    )
