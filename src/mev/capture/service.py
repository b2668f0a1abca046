"""Capture of MEV events: from JSON documents to published events.

A document is a block, a transaction, a JSON-RPC envelope of either, or a list of these. Consecutive
transactions with the same slot count as one block, so that a file of single transactions can
contain a sandwich. Invalid data is reported with its place and skipped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mev.capture import arbitrage, decode, liquidation, sandwich, shape, tips, venues
from mev.capture.analysed_transaction import AnalysedTransaction
from mev.capture.model import LAST_BLOCK_TIME_S, BadInputError
from mev.capture.rpc import SLOT_HAS_NO_BLOCK, error_code
from mev.wire.pb import events_pb2

Event = events_pb2.Arbitrage | events_pb2.Sandwich | events_pb2.Liquidation
Publish = Callable[[Sequence[Event]], None]

_VENUE_IDS = frozenset(venues.VENUES)
_LAST_SLOT = 2**63
_MOST_SKIPPED_SLOTS = 1000
_LENDER_IDS = frozenset(venues.LENDERS)


@dataclass(slots=True)
class CaptureSummary:
    """Counters of a run."""

    transactions: int = 0
    votes: int = 0
    failed: int = 0
    without_meta: int = 0
    arbitrages: int = 0
    sandwiches: int = 0
    liquidations: int = 0
    tips: int = 0
    tip_lamports: int = 0
    other_tips: int = 0
    other_tip_lamports: int = 0
    without_owners: int = 0
    published: int = 0
    repeats: int = 0
    errors: int = 0
    unknown_versions: int = 0
    skipped_slots: int = 0
    null_results: int = 0
    missing_slots: int = 0


class Capture:
    """Examines documents in order and publishes the events in batches."""

    def __init__(
        self,
        publish: Publish,
        *,
        report: Callable[[BadInputError], None] = lambda _error: None,
        note: Callable[[str], None] = lambda _line: None,
        batch_events: int = 500,
        remember_events: int = 100_000,
    ) -> None:
        """Configure a run.

        ``publish`` receives a batch of events and returns when they are stored. ``report`` receives
        each error, ``note`` each kind of skipped data once. ``batch_events`` is the size of a
        batch, ``remember_events`` the number of recent events for deduplication.
        """
        self.summary = CaptureSummary()
        self._publish = publish
        self._report = report
        self._note = note
        self._noted: set[str] = set()
        self._batch_events = batch_events
        self._events: list[Event] = []
        self._remember_events = remember_events
        self._seen: dict[tuple[str, str], None] = {}
        self._source = ""
        self._slot: int | None = None
        self._trades: list[AnalysedTransaction] = []

    def document(self, value: Any, *, source: str = "", slot: int | None = None) -> None:
        """Examine one document.

        ``source`` is its name in errors; ``slot`` is the presumed slot of a block without one.
        """
        self._source = source
        self._guarded(value, "", slot)

    def _guarded(self, value: Any, place: str, slot: int | None) -> None:
        try:
            self._document(value, place, slot)
        except BadInputError as error:
            self._bad(error)

    def close(self) -> None:
        """Finish the current block and publish pending events."""
        self._end_slot()
        self.flush()

    def flush(self) -> None:
        """Publish pending events."""
        if self._events:
            events, self._events = self._events, []
            self._publish(events)
            self.summary.published += len(events)

    def bad(self, error: BadInputError) -> None:
        """Count and report an error."""
        self.summary.errors += 1
        self._report(error)

    def _bad(self, error: BadInputError) -> None:
        self.bad(error.within(self._source) if self._source else error)

    def _document(self, value: Any, place: str, slot: int | None) -> None:
        if isinstance(value, list):
            for index, each in enumerate(value):
                self._guarded(each, f"{place}[{index}]", None)
        elif not isinstance(value, dict):
            raise BadInputError(
                f"expected a block or a transaction, found {shape.kind(value)}", place=place
            )
        elif "transactions" in value:
            self._block(value, place, slot)
        elif "transaction" in value or "meta" in value:
            self._single(value, place)
        elif value.get("error") is not None:
            self._refusal(value["error"], f"{place}.error" if place else "error")
        elif "result" in value:
            self._envelope(value["result"], f"{place}.result" if place else "result", slot)
        else:
            raise BadInputError(
                "neither a block nor a transaction: no member transactions, transaction or result",
                place=place,
            )

    def _envelope(self, result: Any, place: str, slot: int | None) -> None:
        # A null result means that the slot was skipped or the transaction is unknown.
        if result is None:
            self.summary.null_results += 1
        else:
            self._document(result, place, slot)

    def _refusal(self, error: Any, place: str) -> None:
        if isinstance(error, dict) and error_code(error.get("code")) in SLOT_HAS_NO_BLOCK:
            self.summary.skipped_slots += 1
        else:
            raise BadInputError(f"the node answered with an error: {error}", place=place)

    def _block(self, value: Mapping[str, Any], place: str, slot: int | None) -> None:
        self._end_slot()
        transactions = shape.typed(value, "transactions", (list,), place)
        block_time_s = _block_time_s(value, place)
        number = _block_slot(value, place, slot)
        prefix = f"{place}.transactions" if place else "transactions"
        for index, raw in enumerate(transactions):
            self._transaction(raw, number, block_time_s, f"{prefix}[{index}]")
        self._end_slot()

    def _single(self, value: Mapping[str, Any], place: str) -> None:
        slot = shape.typed(value, "slot", (int, float), place, required=False)
        number = 0 if slot is None else shape.number(slot, f"{place}.slot" if place else "slot")
        if number != self._slot:
            self._end_slot()
            self._slot = number
        self._transaction(value, number, _block_time_s(value, place), place)

    def _transaction(self, raw: Any, slot: int, block_time_s: int, place: str) -> None:
        self.summary.transactions += 1
        try:
            tx = decode.transaction(raw, slot=slot, block_time_s=block_time_s, place=place)
            if isinstance(tx, decode.Skipped):
                self._skip(tx)
                return
            if isinstance(tx, decode.UnknownVersion):
                self.summary.unknown_versions += 1
                self._once(
                    f"transactions of version {tx.version} cannot be read yet: they are "
                    "counted and passed over"
                )
                return
            self._examine(AnalysedTransaction(tx))
        except BadInputError as error:
            self._bad(error)
        except decode.SHAPE_ERRORS as cause:
            try:
                shape.explain(raw, place, cause)
            except BadInputError as error:
                self._bad(error)

    def _skip(self, why: decode.Skipped) -> None:
        summary = self.summary
        if why is decode.Skipped.FAILED:
            summary.failed += 1
        elif why is decode.Skipped.VOTE:
            summary.votes += 1
        else:
            summary.without_meta += 1

    def _once(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            self._note(line)

    def _examine(self, analysed: AnalysedTransaction) -> None:
        self._count_tips(analysed.listed_tips)
        keys = analysed.tx.keys
        if not _LENDER_IDS.isdisjoint(keys):
            found = liquidation.find(analysed.instructions)
            if found is not None:
                self._found(liquidation.event(analysed, found))
                return
        if not venues.TOKEN_PROGRAMS.isdisjoint(keys) and not analysed.net.owners_are_known:
            self.summary.without_owners += 1
            self._once(
                "token balances without owners, as nodes answer for old slots: no arbitrage or "
                "sandwich is claimed there"
            )
            return
        event = arbitrage.detect(analysed)
        if event is not None:
            self._found(event)
        if not _VENUE_IDS.isdisjoint(keys) and analysed.swaps:
            self._trades.append(analysed)

    def _count_tips(self, found: Sequence[tips.Tip]) -> None:
        jito = [tip.lamports for tip in found if tip.service == tips.JITO]
        if jito:
            self.summary.tips += 1
            self.summary.tip_lamports += sum(jito)
        if len(found) > len(jito):
            self.summary.other_tips += 1
            self.summary.other_tip_lamports += sum(tip.lamports for tip in found) - sum(jito)

    def _end_slot(self) -> None:
        for event in sandwich.detect(self._trades):
            self._found(event)
        self._trades = []
        self._slot = None

    def _found(self, event: Event) -> None:
        key = (event.DESCRIPTOR.name, event.signature)
        if key in self._seen:
            self.summary.repeats += 1
            return
        self._seen[key] = None
        if len(self._seen) > self._remember_events:
            del self._seen[next(iter(self._seen))]
        self._count(event)
        self._events.append(event)
        if len(self._events) >= self._batch_events:
            self.flush()

    def _count(self, event: Event) -> None:
        if isinstance(event, events_pb2.Arbitrage):
            self.summary.arbitrages += 1
        elif isinstance(event, events_pb2.Sandwich):
            self.summary.sandwiches += 1
        else:
            self.summary.liquidations += 1


def _block_time_s(value: Mapping[str, Any], place: str) -> int:
    time_s = value.get("blockTime")
    if time_s is None:
        return 0
    return shape.number(
        time_s, f"{place}.blockTime" if place else "blockTime", most=LAST_BLOCK_TIME_S
    )


def _block_slot(value: Mapping[str, Any], place: str, hint: int | None) -> int:
    """Return the slot of a block; the node's answer contains only the parent slot.

    Slots in between may be skipped: a plausible hint is used, otherwise the slot after the parent.
    """
    prefix = f"{place}." if place else ""
    if value.get("slot") is not None:
        return shape.number(value["slot"], f"{prefix}slot")
    if value.get("parentSlot") is None:
        return hint or 0
    parent = shape.number(value["parentSlot"], f"{prefix}parentSlot", most=_LAST_SLOT)
    return (
        hint if hint is not None and parent < hint <= parent + _MOST_SKIPPED_SLOTS else parent + 1
    )
