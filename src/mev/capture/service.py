"""From decoded JSON to published events: what ``mev capture`` does with each document it is given.

A document is a block, a transaction, a JSON-RPC envelope around either, or a list of such. Transactions that follow one
another with the same slot are taken as one block, so that a file of single transactions can hold a sandwich. What
cannot be read is reported with its place and passed over; the rest is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mev.capture import arbitrage, decode, liquidation, sandwich, shape, tips, venues
from mev.capture.candidate import Candidate
from mev.capture.model import BadInputError
from mev.wire.pb import events_pb2

Event = events_pb2.Arbitrage | events_pb2.Sandwich | events_pb2.Liquidation
Publish = Callable[[Sequence[Event]], None]

_VENUE_IDS = frozenset(venues.VENUES)
_LAST_SLOT = 2**63
_MOST_SKIPPED_SLOTS = 1000
_LENDER_IDS = frozenset(venues.LENDERS)


@dataclass(slots=True)
class Summary:
    """What a run has seen so far."""

    transactions: int = 0
    votes: int = 0
    failed: int = 0
    without_meta: int = 0
    arbitrages: int = 0
    sandwiches: int = 0
    liquidations: int = 0
    tips: int = 0
    tip_lamports: int = 0
    published: int = 0
    repeats: int = 0
    errors: int = 0


class Capture:
    """Examines documents in order and hands the events on in batches."""

    def __init__(
        self,
        publish: Publish,
        *,
        report: Callable[[BadInputError], None] = lambda _error: None,
        batch_events: int = 500,
        remember_events: int = 100_000,
    ) -> None:
        """Set up a run.

        ``publish`` gets a batch of events and returns once they are safe. ``report`` hears of each thing that could not
        be read, as it happens. ``batch_events`` is how many events are held before they are published, and
        ``remember_events`` how many of the last ones are known again when their transaction comes a second time.
        """
        self.summary = Summary()
        self._publish = publish
        self._report = report
        self._batch_events = batch_events
        self._events: list[Event] = []
        self._remember_events = remember_events
        self._seen: dict[tuple[str, str], None] = {}
        self._source = ""
        self._slot: int | None = None
        self._trades: list[Candidate] = []

    def document(self, value: Any, *, source: str = "", slot: int | None = None) -> None:
        """Examine one document.

        ``source`` is what errors call it; ``slot`` is what is thought to be a block's, where its text does not say.
        """
        self._source = source
        self._guarded(value, "", slot)

    def _guarded(self, value: Any, place: str, slot: int | None) -> None:
        try:
            self._document(value, place, slot)
        except BadInputError as error:
            self._bad(error)

    def close(self) -> None:
        """Finish the block under way and publish what is held."""
        self._end_slot()
        self.flush()

    def flush(self) -> None:
        """Publish what is held."""
        if self._events:
            events, self._events = self._events, []
            self._publish(events)
            self.summary.published += len(events)

    def bad(self, error: BadInputError) -> None:
        """Note something that could not be read."""
        self.summary.errors += 1
        self._report(error)

    def _bad(self, error: BadInputError) -> None:
        self.bad(error.within(self._source) if self._source else error)

    def _document(self, value: Any, place: str, slot: int | None) -> None:
        if isinstance(value, list):
            for index, each in enumerate(value):
                self._guarded(each, f"{place}[{index}]", None)
        elif not isinstance(value, dict):
            raise BadInputError(f"expected a block or a transaction, found {shape.kind(value)}", place=place)
        elif "transactions" in value:
            self._block(value, place, slot)
        elif "transaction" in value or "meta" in value:
            self._single(value, place)
        elif "result" in value:
            self._envelope(value["result"], f"{place}.result" if place else "result", slot)
        elif "error" in value:
            raise BadInputError(f"the node answered with an error: {value['error']}", place=f"{place}.error" if place else "error")
        else:
            raise BadInputError("neither a block nor a transaction: no member transactions, transaction or result", place=place)

    def _envelope(self, result: Any, place: str, slot: int | None) -> None:
        # A null result is the node's way to say that the slot was skipped or the transaction is unknown.
        if result is not None:
            self._document(result, place, slot)

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
            self._examine(Candidate(tx, tips.lamports(tx)))
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

    def _examine(self, candidate: Candidate) -> None:
        if candidate.tip_lamports:
            self.summary.tips += 1
            self.summary.tip_lamports += candidate.tip_lamports
        keys = candidate.tx.keys
        if not _LENDER_IDS.isdisjoint(keys):
            found = liquidation.find(candidate.instructions)
            if found is not None:
                self._found(liquidation.event(candidate, found))
                return
        event = arbitrage.detect(candidate)
        if event is not None:
            self._found(event)
        if not _VENUE_IDS.isdisjoint(keys) and candidate.swaps:
            self._trades.append(candidate)

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
    # Nanoseconds have to fit 64 bits with a sign.
    return shape.number(time_s, f"{place}.blockTime" if place else "blockTime", most=9_223_372_036)


def _block_slot(value: Mapping[str, Any], place: str, hint: int | None) -> int:
    """Return a block's slot: the node's answer has only the parent's, and slots in between may have been skipped.

    So a hint is believed when it can be right; without one it is the slot after the parent's.
    """
    prefix = f"{place}." if place else ""
    if value.get("slot") is not None:
        return shape.number(value["slot"], f"{prefix}slot")
    if value.get("parentSlot") is None:
        return hint or 0
    parent = shape.number(value["parentSlot"], f"{prefix}parentSlot", most=_LAST_SLOT)
    return hint if hint is not None and parent < hint <= parent + _MOST_SKIPPED_SLOTS else parent + 1
