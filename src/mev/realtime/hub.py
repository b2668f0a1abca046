"""Events in, batches out: the hub knows the clients, the groups, and which group wants what.

Everything here runs in the event-loop thread. The bus calls :meth:`Hub.push`; the transports' side calls the rest.
"""

import asyncio
import logging
from collections.abc import Mapping
from itertools import count

from prometheus_client import CollectorRegistry

from mev.bus import batch as bus
from mev.bus.kafka import Position
from mev.realtime import messages, stages
from mev.realtime.batch import Batch, Block, Span, Topic
from mev.realtime.budget import Budget
from mev.realtime.catchup import CatchUp
from mev.realtime.client import Client
from mev.realtime.cursor import Cursor, Positions, cursor
from mev.realtime.errors import CatchingUpError, DuplicateIdError, TooManySubscriptionsError, UnknownIdError
from mev.realtime.group import Group
from mev.realtime.laggards import Laggards
from mev.realtime.limits import Limits
from mev.realtime.link import Link
from mev.realtime.outbox import Outbox
from mev.realtime.past import PastReader, Pool
from mev.realtime.subscription import Subscription
from mev.realtime.tally import Carrier, Encoding, Loss, Tally, TallyCollector
from mev.realtime.terms import OnSlow, Terms
from mev.realtime.watch import Watch
from mev.realtime.websocket import Close
from mev.realtime.window import Window
from mev.wire.filters import Filter
from mev.wire.registry import EventType
from mev.wire.render import renderer

LOG = logging.getLogger(__name__)
_GroupKey = tuple[frozenset[str], Filter]


class Hub:
    """Fan events out to clients by topic and filter.

    `positions` is where each partition of the log called `log` is read next; it grows with what is pushed. `past` has the readers for
    subscriptions that begin before now.
    """

    def __init__(
        self,
        types: Mapping[str, EventType],
        limits: Limits,
        registry: CollectorRegistry | None = None,
        *,
        log: str = "",
        past: Pool | None = None,
    ) -> None:
        self.limits = limits
        self.types = types
        self.log = log
        self.past = past
        self.positions: dict[Position, int] = {}
        self._topics = {type_.topic: Topic(type_, renderer(type_)) for type_ in types.values()}
        self._window = Window(limits.batch_window_ms / 1000)
        self._clients: dict[int, Client] = {}
        self._ids = count(1)
        self._groups: dict[_GroupKey, Group] = {}
        self._groups_by_topic: dict[str, dict[Group, None]] = {}
        self._catching_up: set[asyncio.Task[None]] = set()
        self._budget = Budget(limits.budget_bytes)
        self._laggards = Laggards(self._budget)
        self._tallies: dict[Carrier, Tally] = {}
        self._watch = Watch(limits, self._clients, self.dismiss)
        self._registry = registry
        self._collector = TallyCollector(self._tallies)
        if registry is not None:
            registry.register(self._collector)

    def begin(self, positions: Positions) -> None:
        """Learn where each partition is read first."""
        for at, offset in positions.items():
            self.positions.setdefault(at, offset)

    def push(self, batch: bus.Batch) -> None:
        """Take one consumed batch. Its lists are kept by reference until their events are sent; the caller leaves them as they are."""
        at = batch.topic, batch.partition
        groups = tuple(self._groups_by_topic.get(batch.topic, ()))
        lost = batch.offsets[-1] + 1 - self.positions.get(at, batch.offsets[0]) - len(batch.offsets)
        stages.received(batch.timestamp_ms)
        if groups:
            block = Block(self._topics[batch.topic], batch.partition, batch.offsets, batch.values, batch.keys)
            for group in groups:
                if lost > 0:
                    group.lose(lost)
                group.add(block)
        self.positions[at] = batch.offsets[-1] + 1

    def set_window(self, batch_window_ms: float) -> None:
        """Change how long an event waits for its batch."""
        self._window.resize(batch_window_ms / 1000)

    @property
    def full(self) -> bool:
        """Whether there is no room for another connection."""
        return len(self._clients) >= self.limits.connections

    @property
    def clients(self) -> Mapping[int, Client]:
        """The open connections by id."""
        return self._clients

    def topic(self, kafka_topic: str) -> Topic:
        """Return what is known of a topic."""
        return self._topics[kafka_topic]

    def admit(self, link: Link, encoding: Encoding, remote: str) -> Client:
        """Take a new connection in."""
        tally = self._tallies.setdefault(Carrier(link.transport, encoding), Tally())
        client = Client(next(self._ids), link, self, encoding=encoding, remote=remote, limits=self.limits, tally=tally)
        self._clients[client.id] = client
        tally.connections += 1
        self._watch.start()
        return client

    def check_id(self, client: Client, subscription_id: str) -> None:
        """Refuse an id that is taken, and one more subscription than a connection may have."""
        if subscription_id in client.subscriptions:
            raise DuplicateIdError(f"there is a subscription {subscription_id!r} already; unsubscribe it first", field="id")
        if len(client.subscriptions) >= self.limits.subscriptions:
            raise TooManySubscriptionsError(f"a connection may have {self.limits.subscriptions} subscriptions; unsubscribe one first")

    def subscribe(self, client: Client, subscription_id: str, terms: Terms) -> Subscription:
        """Send `client` what its `terms` let through from now on."""
        self.check_id(client, subscription_id)
        subscription = self._add(client, subscription_id, terms)
        self.join(subscription)
        return subscription

    def subscribe_from(
        self, client: Client, subscription_id: str, terms: Terms, positions: dict[Position, int], pool: Pool, reader: PastReader
    ) -> Subscription:
        """Send `client` what its `terms` let through from `positions` on, and then what is live. `reader`, of `pool`, is closed then."""
        subscription = self._add(client, subscription_id, terms)
        subscription.behind = positions
        self.join(subscription)
        catching = CatchUp(subscription, self, pool, reader)
        task = asyncio.get_running_loop().create_task(catching.run())
        subscription.task = task
        self._catching_up.add(task)
        task.add_done_callback(lambda task: self._caught_up(subscription, catching, task))
        return subscription

    def subscription(self, client: Client, subscription_id: str) -> Subscription:
        """Return a client's subscription.

        :raises UnknownIdError: when it has none of that name.
        """
        subscription = client.subscriptions.get(subscription_id)
        if subscription is None:
            raise UnknownIdError(f"there is no subscription {subscription_id!r}", field="id")
        return subscription

    def update(self, client: Client, subscription_id: str, terms: Terms) -> Subscription:
        """Change what a subscription asks for: what came before goes by the old terms, what comes after by the new ones."""
        subscription = self.subscription(client, subscription_id)
        if subscription.behind and terms.topics != subscription.terms.topics:
            raise CatchingUpError("the subscription is catching up with the past of its topics; change them when it is live")
        if subscription.group is not None:
            subscription.group.flush()
        self.leave(subscription)
        subscription.set_terms(terms)
        self.join(subscription)
        return subscription

    def unsubscribe(self, client: Client, subscription_id: str) -> int:
        """End a subscription; return how many events it lost and was not told of."""
        subscription = self.subscription(client, subscription_id)
        del client.subscriptions[subscription_id]
        client.lose(subscription, self._end(subscription), Loss.DROP_OLDEST)
        return subscription.lost

    def join(self, subscription: Subscription) -> None:
        """Add a subscription to its group."""
        terms = subscription.terms
        key = terms.topics, terms.filter
        group = self._groups.get(key)
        if group is None:
            kafka_topics = frozenset(self._kafka_topics(terms))
            group = self._groups[key] = Group(kafka_topics, terms.filter, self.limits.batch_max_size, self._window, self.positions)
            for topic in kafka_topics:
                self._groups_by_topic.setdefault(topic, {})[group] = None
        group.join(subscription)
        subscription.group = group

    def leave(self, subscription: Subscription) -> None:
        """Take a subscription out of its group; what is collected and not sent yet, it does not get."""
        group, subscription.group = subscription.group, None
        if group is None:
            return
        group.leave(subscription)
        if not group:
            del self._groups[subscription.terms.topics, subscription.terms.filter]
            for topic in group.kafka_topics:
                del self._groups_by_topic[topic][group]

    def cursor(self, subscription: Subscription) -> Cursor:
        """Return where a subscription would have to begin to miss nothing that it was not sent."""
        return cursor(self.unsent(subscription), self._kafka_topics(subscription.terms))

    def dismiss(self, client: Client, code: int, reason: str, *, resume: str | None = None, retry_after_s: int = 1) -> None:
        """Close a connection; it counts as open until :meth:`release`. With `resume`, say under that code where to go on.

        Where frames may still be lost, only the client knows that.
        """
        if client.closing:
            return
        if resume is not None and client.subscriptions:
            client.tell(at_last=True)
            cursors = {} if client.is_numbered else {name: self.cursor(of) for name, of in client.subscriptions.items()}
            client.link.send_text(messages.closing(resume, reason, retry_after_s, self.log, cursors))
        client.closing = True
        self._cancel(client)
        client.link.close(code, reason)

    def release(self, client: Client) -> None:
        """Forget a connection that is gone."""
        if self._clients.pop(client.id, None) is None:
            return
        client.closing = True
        self._cancel(client)
        self._tallies[Carrier(client.link.transport, client.encoding)].connections -= 1
        if not self._clients:
            self._watch.stop()

    def close(self) -> None:
        """Close every connection with 1001 and its cursors, stop batching and take the metrics back."""
        for client in list(self._clients.values()):
            self.dismiss(client, Close.GOING_AWAY, "the server is shutting down", resume="going_away")
        self._window.close()
        self._laggards.stop()
        if self._registry is not None:
            self._registry.unregister(self._collector)
            self._registry = None

    async def settled(self) -> None:
        """Wait until nothing catches up any more, after :meth:`close`."""
        await asyncio.gather(*self._catching_up, return_exceptions=True)

    # What clients call.

    def fell_behind(self, client: Client) -> None:
        """Look after a client that something waits for."""
        self._laggards.add(client)

    def overflowed(self, client: Client) -> None:
        """End a connection that may lose nothing and is too slow."""
        self.dismiss(client, Close.TRY_AGAIN_LATER, "too much waits for a lossless subscription; resume from the cursor", resume="too_slow")

    def unsent(self, subscription: Subscription) -> Positions:
        """Return where what the client has not been sent begins."""
        topics = self._kafka_topics(subscription.terms)
        collected = subscription.group.starts() if subscription.group is not None else {}
        live = {at: offset for at, offset in self.positions.items() if at[0] in topics}
        return {**live, **collected, **subscription.behind, **subscription.outbox.starts()}

    def _add(self, client: Client, subscription_id: str, terms: Terms) -> Subscription:
        def repack(spans: list[Span]) -> Batch:
            return Batch(self._kafka_topics(subscription.terms), self.unsent(subscription), spans, complete=False)

        outbox = Outbox(OnSlow.DROP_OLDEST, self._budget, client.encode, repack)
        subscription = client.subscriptions[subscription_id] = Subscription(client, subscription_id, terms, outbox)
        return subscription

    def _kafka_topics(self, terms: Terms) -> list[str]:
        return [self.types[name].topic for name in sorted(terms.topics)]

    def _caught_up(self, subscription: Subscription, catching: CatchUp, task: "asyncio.Task[None]") -> None:
        catching.close()  # a task that is cancelled before its first step does nothing at all
        self._catching_up.discard(task)
        subscription.task = None
        if not task.cancelled() and (failure := task.exception()) is not None:
            LOG.error("catching up failed", exc_info=failure, extra={"action": "catch_up_failed"})
            self.dismiss(subscription.client, Close.INTERNAL, "the past could not be read; resume from the cursor", resume="failed")

    def _cancel(self, client: Client) -> None:
        while client.subscriptions:
            _, subscription = client.subscriptions.popitem()
            self._end(subscription)
        self._laggards.discard(client)

    def _end(self, subscription: Subscription) -> int:
        if subscription.task is not None:
            subscription.task.cancel()
        self.leave(subscription)
        return subscription.client.forget(subscription)
