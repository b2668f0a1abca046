"""Tests of arbitrary interleavings: received and reported-lost events make up all published."""

import asyncio
from itertools import count
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from mev.realtime.access import StreamAccess
from mev.realtime.batch import Encoding
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.wire.registry import EVENT_TYPES
from tests.unit.realtime.clock import Clock
from tests.unit.realtime.memory_log import PLACES, TYPES, MemoryLog, MemoryPool
from tests.unit.realtime.peer import PASSES, Account, Peer

LONG_S = 1e9
ROUNDS = 500
topics = st.sampled_from([("tick",), ("bundle",), TYPES])
policies = st.sampled_from(["lossless", "lossless", "drop_oldest", "conflate"])
which = st.integers(0, 5)
actions = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(PLACES), st.integers(1, 12)),
    st.tuples(st.just("publish_and_deliver"), st.sampled_from(PLACES), st.integers(1, 12)),
    st.tuples(st.just("deliver"), st.integers(1, 10)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.0, 0.01, 0.5])),
    st.tuples(st.just("read"), which, st.integers(1, 600)),
    st.tuples(
        st.just("subscribe"),
        which,
        topics,
        st.sampled_from(sorted(PASSES)),
        policies,
        st.sampled_from([None, None, 5]),
        st.integers(0, 3),
    ),
    st.tuples(st.just("update_filter"), which, st.sampled_from(sorted(PASSES))),
    st.tuples(st.just("update_policy"), which, policies),
    st.tuples(st.just("unsubscribe"), which),
    st.tuples(st.just("cut"), which),
    st.tuples(st.just("end_politely"), which),
)
limits = st.builds(
    HubLimits,
    batch_max_size=st.integers(1, 8),
    soft_buffer_bytes=st.integers(0, 300),
    queue_bytes=st.integers(1000, 3000),
    budget_bytes=st.sampled_from([800, 1 << 20]),
    batch_window_ms=st.just(5),
    json_events_per_s=st.sampled_from([20, 100_000]),
    stall_timeout_s=st.just(LONG_S),
    ping_interval_s=st.just(LONG_S),
)


LATE_HUB: list[tuple[Any, ...]] = [
    ("publish", PLACES[3], 10),
    ("publish", PLACES[2], 4),
    ("subscribe", 1, ("bundle",), ("simulated == true",), "conflate", None, 3),
    ("wait", 0.01),
]


class World:
    """A log, a hub, and two clients of each encoding."""

    def __init__(self, bounds: HubLimits, chunk: int) -> None:
        self.clock = Clock()
        self.log = MemoryLog()
        self.replay_pool = MemoryPool(self.log, chunk)
        pool: Any = self.replay_pool
        self.hub = Hub(EVENT_TYPES, bounds, log="log", replay_pool=pool)
        self.hub.begin(self.log.ends)
        guard = StreamAccess(self.hub, None)  # type: ignore[arg-type]
        self.peers = [Peer(self.hub, guard, encoding) for encoding in Encoding for _ in range(2)]
        self._ids = count(1)

    async def run(self, script: list[tuple[Any, ...]]) -> None:
        """Run `script`, let all clients finish, and check their accounts."""
        for peer in self.peers:
            await peer.connect()
        for name, *arguments in script:
            await getattr(self, f"_{name}")(*arguments)
            for peer in self.peers:
                await peer.look()
        self.log.deliver(self.hub)
        for _ in range(ROUNDS):
            await self.clock.forward(1)
            for peer in self.peers:
                peer.read(1 << 30)
                await peer.look()
            if self._is_settled():
                break
        await self.clock.forward(1)
        for peer in self.peers:
            peer.read(1 << 30)
            for account in peer.accounts.values():
                if not account.ended:
                    account.check(self.log.ends, final=True)
        self.hub.close()
        await self.clock.forward()
        assert self.hub._budget.used_bytes == 0
        assert self.replay_pool.open == 0

    def _is_settled(self) -> bool:
        subscriptions = [
            subscription
            for client in self.hub.clients.values()
            for subscription in client.subscriptions.values()
        ]
        return all(
            not subscription.behind and not subscription.queued for subscription in subscriptions
        )

    async def _publish(self, at: tuple[str, int], number: int) -> None:
        self.log.ends[at] += number

    async def _deliver(self, most: int) -> None:
        self.log.deliver(self.hub, most)

    async def _publish_and_deliver(self, at: tuple[str, int], number: int) -> None:
        self.log.ends[at] += number
        self.log.deliver(self.hub)

    async def _wait(self, seconds: float) -> None:
        await self.clock.forward(seconds)

    async def _read(self, peer: int, size: int) -> None:
        self._peer(peer).read(size)

    async def _subscribe(
        self,
        peer: int,
        types: tuple[str, ...],
        conditions: tuple[str, ...],
        on_slow: str,
        max_rate: int | None,
        start: int,
    ) -> None:
        if any("market_id" in condition for condition in conditions):
            types = ("tick",)
        begin: object = (
            "live",
            "live",
            "earliest",
            {"cursor": {types[0]: {"0": self.log.ends[EVENT_TYPES[types[0]].topic, 0] // 2}}},
        )[start]
        account = Account(f"s{next(self._ids)}", types, conditions, on_slow, max_rate, begin)
        if len(self._peer(peer).accounts) < 3:
            await self._peer(peer).subscribe(account)

    async def _update_filter(self, peer: int, conditions: tuple[str, ...]) -> None:
        for account in self._accounts(peer):
            # While it catches up nobody can say which event goes by which terms.
            if self._peer(peer).is_live(account) and (
                account.topics == ("tick",) or not any("market_id" in one for one in conditions)
            ):
                await self._peer(peer).update(account, {"filter": list(conditions)})

    async def _update_policy(self, peer: int, on_slow: str) -> None:
        for account in self._accounts(peer):
            if account.cursor is not None:
                await self._peer(peer).update(account, {"on_slow": on_slow})

    async def _unsubscribe(self, peer: int) -> None:
        for account in self._accounts(peer)[:1]:
            if account.cursor is not None:
                await self._peer(peer).ask({"op": "unsubscribe", "id": account.id})
                self._peer(peer).read(1 << 30)
                if account.ended:  # unless the connection has
                    account.check(self.log.ends, final=False)

    async def _cut(self, peer: int) -> None:
        await self._peer(peer).cut()

    async def _end_politely(self, peer: int) -> None:
        await self._peer(peer).end_politely()

    def _peer(self, index: int) -> Peer:
        return self.peers[index % len(self.peers)]

    def _accounts(self, index: int) -> list[Account]:
        return [account for account in self._peer(index).accounts.values() if not account.ended]


@given(st.lists(actions, min_size=20, max_size=80), limits, st.integers(1, 6))
@example(LATE_HUB, HubLimits(batch_max_size=2, stall_timeout_s=LONG_S, ping_interval_s=LONG_S), 1)
def test_received_and_lost_make_what_was_published(
    script: list[tuple[Any, ...]], bounds: HubLimits, chunk: int
) -> None:
    async def live() -> None:
        world = World(bounds, chunk)
        with world.clock.installed():
            await world.run(script)

    asyncio.run(live())
