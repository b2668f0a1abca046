"""A client of the protocol over connections in memory, which keeps account of what it is owed."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from mev.auth.model import MASTER
from mev.bus.kafka import Position
from mev.realtime.access import StreamAccess
from mev.realtime.batch import Encoding
from mev.realtime.client import Client
from mev.realtime.hub import Hub
from mev.realtime.requests import RequestHandler
from mev.wire.frames import offsets_of
from mev.wire.registry import EVENT_TYPES
from mev.wire.resume import decode, fingerprint
from tests.unit.realtime.links import TEXT, MemoryLink, Sent
from tests.unit.realtime.memory_log import cursor, key_of, place, positions

PASSES: dict[tuple[str, ...], Callable[[int], bool]] = {
    (): lambda _: True,
    ("simulated == true",): lambda offset: offset % 2 == 0,
    ("simulated == false",): lambda offset: offset % 2 == 1,
    ('market_id in ["x", "z"]',): lambda offset: key_of(offset) in "xz",
}
Conditions = tuple[str, ...]


@dataclass
class Account:
    """One subscription over all its connections: what it is owed, what it got."""

    id: str
    topics: tuple[str, ...]
    conditions: Conditions
    on_slow: str
    max_rate: int | None
    start: object
    cursor: dict[Position, int] | None = None
    resume: str | None = None
    """The token of the last message; with one it comes back by this, without by its cursor."""
    periods: list[tuple[dict[Position, int], Conditions]] = field(default_factory=list)
    received: dict[Position, list[int]] = field(default_factory=lambda: defaultdict(list))
    told: int = 0
    lossless: bool = True
    conflated: bool = False
    repaid: bool = False
    """Whether events reported as lost may have arrived.

    A connection ended without notice, or within conflated events.
    """
    ended: bool = False
    wanted: list[tuple[dict[str, Any], dict[Position, int]]] = field(default_factory=list)
    """Changes that were asked for, each with where the hub was then."""

    def subscribe(self) -> dict[str, Any]:
        """Return the message that begins or resumes it."""
        start = self.start if self.cursor is None else {"cursor": cursor(self.cursor), "log": "log"}
        if self.resume:
            start = {"resume": self.resume}
        fields = {
            "topics": self.topics,
            "filter": self.conditions,
            "on_slow": self.on_slow,
            "max_rate": self.max_rate,
        }
        return {"op": "subscribe", "id": self.id, "from": start, **fields}

    def owed(self, ends: Mapping[Position, int]) -> dict[Position, list[int]]:
        """Return what was published to it since its start, up to `ends`."""
        first = self.periods[0][0]
        return {
            at: [offset for offset in range(start, ends[at]) if self._passes(at, offset)]
            for at, start in first.items()
        }

    def check(self, ends: Mapping[Position, int], *, final: bool) -> None:
        """Compare what it is owed with what it got; in the end nothing may be outstanding."""
        owed = self.owed(ends)
        for at, offsets in self.received.items():
            assert offsets == sorted(set(offsets)), f"{self.id}: {at} out of order or twice"
            assert set(offsets) <= set(owed[at]), f"{self.id}: {at} has what it did not ask for"
        got, due = sum(map(len, self.received.values())), sum(map(len, owed.values()))
        if self.lossless and not self.ended:  # who leaves is told what it did not wait for
            assert self.told == 0
        if not self.repaid:
            assert got + self.told <= due
        if final:
            if self.lossless:
                assert {at: offsets for at, offsets in owed.items() if offsets} == {
                    at: o for at, o in self.received.items() if o
                }
            assert got + self.told >= due, f"{self.id}: {got} + {self.told} of {due}"

    def _passes(self, at: Position, offset: int) -> bool:
        conditions = next(
            conditions for start, conditions in reversed(self.periods) if start.get(at, 0) <= offset
        )
        return PASSES[conditions](offset)


class Peer:
    """Connects, asks, reads as slowly as it is told to, and comes back from its cursors."""

    def __init__(self, hub: Hub, guard: StreamAccess, encoding: Encoding) -> None:
        self.accounts: dict[str, Account] = {}
        self.client: Client
        self._hub = hub
        self._guard = guard
        self._encoding = encoding
        self._only: list[str] = []

    async def connect(self) -> None:
        """Open a connection, and take up every subscription."""
        self._link = MemoryLink(reading=False)
        self.client = self._hub.admit(self._link, self._encoding, "peer")
        absent: Any = None
        self._session = RequestHandler(self._hub, self.client, self._guard, absent, MASTER)
        self._seen = 0
        for account in self.accounts.values():
            account.wanted.clear()
            if not account.ended:
                await self.ask(account.subscribe())
                self.read(1 << 30)

    async def ask(self, message: Mapping[str, Any]) -> None:
        """Send a message; the next one is handled when this one is."""
        work = self._session.receive_text(orjson.dumps(message))
        if work is not None:
            await work

    async def subscribe(self, account: Account) -> None:
        """Begin a subscription."""
        self.accounts[account.id] = account
        self._note_policy(account, account.on_slow)
        await self.ask(account.subscribe())

    async def update(self, account: Account, changes: dict[str, Any]) -> None:
        """Change a subscription."""
        self._note_policy(account, changes.get("on_slow", account.on_slow))
        account.wanted.append((changes, dict(self._hub.positions)))
        await self.ask({"op": "update", "id": account.id, **changes})

    def is_live(self, account: Account) -> bool:
        """Say whether a subscription has come to the live end, as far as both sides know."""
        subscription = self.client.subscriptions.get(account.id)
        return subscription is not None and not subscription.behind and account.cursor is not None

    def read(self, size: int) -> None:
        """Read up to `size` bytes."""
        self._link.read(size)
        self.client.drain()
        messages = self._link.messages()
        for message in messages[self._seen :]:
            if message.opcode == TEXT:
                self._take_text(message)
            elif message.opcode != 8:
                self._take_frame(message)
        self._seen = len(messages)

    async def look(self) -> None:
        """Come back when the server has ended the connection."""
        if self._link.aborted:
            await self.cut()
        elif self._link.closed is not None:
            await self._part()

    async def cut(self) -> None:
        """Lose the connection with all that is under way, and come back."""
        for account in self.accounts.values():
            account.repaid |= account.cursor is not None
        self._leave()
        await self.connect()

    async def end_politely(self) -> None:
        """Have the server end the connection, and come back from where it says."""
        self._hub.disconnect(self.client, 1001, "bye", resume="going_away")
        await self._part()

    async def _part(self) -> None:
        self.read(1 << 30)
        self._leave()
        await self.connect()

    def _note_policy(self, account: Account, on_slow: str) -> None:
        account.lossless &= on_slow == "lossless"
        account.conflated |= on_slow == "conflate"

    def _leave(self) -> None:
        self._guard.unregister(self.client)
        self._hub.release(self.client)

    def _take_text(self, message: Sent) -> None:
        fields: dict[str, Any] = message.json
        if fields["op"] == "closing":
            for name, document in fields["cursors"].items():
                self._farewell(self.accounts[name], positions(document), fields["resume"][name])
            return
        account = self.accounts[fields["id"]]
        assert not account.ended, f"{fields} after the end of {account.id}"
        match fields["op"]:
            case "subscribed":
                self._begin(account, fields)
            case "updated":
                changes, since = account.wanted.pop(0)
                account.conditions = tuple(changes.get("filter", account.conditions))
                account.on_slow = changes.get("on_slow", account.on_slow)
                if "filter" in changes:
                    account.periods.append((since, account.conditions))
            case "unsubscribed":
                account.told += fields["dropped"]
                account.ended = True
            case "events":
                for event in fields["events"]:
                    partition, offset = place(int(event.get("timestamp_ns", event.get("slot", 0))))
                    account.received[EVENT_TYPES[event["type"]].topic, partition].append(offset)
                account.told += fields["dropped"]
                account.cursor = positions(fields["cursor"])
                self._note_token(account, fields["resume"])
            case other:
                raise AssertionError(f"{other}: {fields}")

    def _begin(self, account: Account, fields: Mapping[str, Any]) -> None:
        start = positions(fields["cursor"])
        if account.cursor is not None:
            assert fields["start"] == "resumed"
            assert start == account.cursor
        if account.start != "live" or account.cursor is not None:
            assert fields["positions"].keys() == set(account.topics)
        account.cursor = dict(start)
        self._note_token(account, fields["resume"])
        account.periods.append((start, account.conditions))

    def _note_token(self, account: Account, token: str) -> None:
        """Keep the token, except where one of JSON comes back by its cursor; both say the same."""
        log, said = decode(token, EVENT_TYPES)
        assert log == fingerprint("log")
        if self._encoding is Encoding.PROTOBUF:
            account.cursor = said
        assert said == account.cursor
        account.resume = token if self._encoding is Encoding.PROTOBUF or len(token) % 2 else None

    def _farewell(self, account: Account, at_last: dict[Position, int], token: str) -> None:
        assert account.cursor is not None
        for at, offsets in account.received.items():
            if offsets and self._encoding is Encoding.PROTOBUF:
                assert at_last[at] > offsets[-1], f"the cursor of {account.id} repeats {at}"
        account.cursor = at_last
        self._note_token(account, token)
        account.repaid |= account.conflated

    def _take_frame(self, message: Sent) -> None:
        frame = message.frame
        account = self.accounts[frame.subscription]
        assert not account.ended
        assert account.cursor is not None
        account.told += frame.dropped
        for part in frame.slices:
            at = part.topic, part.partition
            account.received[at] += offsets_of(part)
        self._note_token(account, frame.resume)
