"""The hub: distributes events in batches to clients, grouped by topics and filter.

All of it runs in the event-loop thread. The bus calls :meth:`Hub.push`; the transports call the
rest.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from itertools import count

from prometheus_client import CollectorRegistry

from mev.bus import batch as bus
from mev.bus.kafka import Position
from mev.realtime import messages, metrics
from mev.realtime.backpressure import QueueBudget, SlowClients
from mev.realtime.batch import Encoding, MessageBlock, Topic
from mev.realtime.catchup import CatchUp
from mev.realtime.client import Client
from mev.realtime.errors import (
    CatchingUpError,
    DuplicateIdError,
    TooManyConnectionsError,
    TooManySubscriptionsError,
    UnknownIdError,
)
from mev.realtime.group import Groups, Window
from mev.realtime.limits import HubLimits
from mev.realtime.link import CloseCode, Link
from mev.realtime.metrics import Carrier, HubMetrics, HubMetricsCollector, Loss
from mev.realtime.options import SubscriptionOptions
from mev.realtime.positions import Positions
from mev.realtime.replay_pool import ReplayPool, ReplayReader
from mev.realtime.snapshots import Snapshots
from mev.realtime.subscription import Subscription
from mev.realtime.timeouts import TimeoutWatch
from mev.wire.registry import EventType
from mev.wire.render import renderer

LOG = logging.getLogger(__name__)


class Hub:
    """Fans events out to clients by topic and filter.

    `positions` is the next offset to read of each partition of the log `log`. A log that is not
    lasting is replaced at the next start by another one with the same offsets. `replay_pool`
    provides readers for subscriptions that start before now.
    """

    def __init__(
        self,
        types: Mapping[str, EventType],
        limits: HubLimits,
        registry: CollectorRegistry | None = None,
        *,
        log: str = "",
        log_is_lasting: bool = True,
        replay_pool: ReplayPool | None = None,
    ) -> None:
        self.limits = limits
        self.types = types
        self.log = log
        self.log_is_lasting = log_is_lasting
        self.replay_pool = replay_pool
        self.positions: dict[Position, int] = {}
        self._of_topic: dict[str, dict[Position, int]] = {}
        """Positions by topic: a frame of one topic reads the positions of that topic only."""
        self.snapshots = Snapshots(
            self.positions,
            replay_pool,
            keys=limits.snapshot_keys,
            scan_events=limits.snapshot_scan_events,
        )
        self._topics = {type_.topic: Topic(type_, renderer(type_)) for type_ in types.values()}
        self._window = Window(limits.batch_window_ms / 1000)
        self._clients: dict[int, Client] = {}
        self._ids = count(1)
        self._groups = Groups(log, limits.batch_max_size, self._window)
        self._catching_up: dict[Subscription, asyncio.Task[None]] = {}
        self._budget = QueueBudget(limits.budget_bytes)
        self._slow_clients = SlowClients(self._budget)
        self._tallies: dict[Carrier, HubMetrics] = {}
        self._watch = TimeoutWatch(limits, self._clients, self.disconnect)
        self._registry = registry
        self._collector = HubMetricsCollector(self._tallies)
        if registry is not None:
            registry.register(self._collector)

    def begin(self, positions: Positions) -> None:
        """Set the first offset of each partition."""
        for at, offset in positions.items():
            self._set_position(at, self.positions.get(at, offset))

    def push(self, batch: bus.PartitionBatch) -> None:
        """Distribute one consumed batch.

        Its lists are kept by reference until their events are sent; the caller must not change
        them.
        """
        at = batch.topic, batch.partition
        groups = self._groups.of_topic(batch.topic)
        lost = batch.offsets[-1] + 1 - self.positions.get(at, batch.offsets[0]) - len(batch.offsets)
        metrics.observe_receive(batch.timestamp_ms)
        if groups:
            topic = self._topics[batch.topic]
            block = MessageBlock(
                topic, batch.partition, batch.offsets, batch.values, batch.keys, batch.published_ms
            )
            for group in groups:
                if lost > 0:
                    group.lose(lost)
                group.add(block)
        self.snapshots.take(batch)
        self._set_position(at, batch.offsets[-1] + 1)

    def _set_position(self, at: Position, offset: int) -> None:
        self.positions[at] = self._of_topic.setdefault(at[0], {})[at] = offset

    def set_window(self, batch_window_ms: float) -> None:
        """Change the time that an event waits for its batch."""
        self._window.resize(batch_window_ms / 1000)

    @property
    def full(self) -> bool:
        """True if the limit of connections is reached."""
        return len(self._clients) >= self.limits.connections

    def check_room(self) -> None:
        """Check that another connection may be opened.

        :raises TooManyConnectionsError: if the limit of connections is reached.
        """
        if self.full:
            raise TooManyConnectionsError(
                "connection limit reached; try again later", retry_after_s=5
            )

    @property
    def clients(self) -> Mapping[int, Client]:
        """The open connections by id."""
        return self._clients

    def topic(self, kafka_topic: str) -> Topic:
        """Return a topic."""
        return self._topics[kafka_topic]

    def admit(self, link: Link, encoding: Encoding, remote: str) -> Client:
        """Register a new connection."""
        hub_metrics = self._tallies.setdefault(Carrier(link.transport, encoding), HubMetrics())
        client = Client(
            next(self._ids),
            link,
            self,
            encoding=encoding,
            remote=remote,
            limits=self.limits,
            hub_metrics=hub_metrics,
        )
        self._clients[client.id] = client
        hub_metrics.connections += 1
        self._watch.start()
        return client

    def check_id(self, client: Client, subscription_id: str) -> None:
        """Check that an id is unused, and that the connection may have another subscription."""
        if subscription_id in client.subscriptions:
            raise DuplicateIdError(
                f"there is a subscription {subscription_id!r} already; unsubscribe it first",
                field="id",
            )
        if len(client.subscriptions) >= self.limits.subscriptions:
            raise TooManySubscriptionsError(
                f"a connection may have {self.limits.subscriptions} subscriptions; "
                "unsubscribe one first"
            )

    def subscribe(
        self, client: Client, subscription_id: str, options: SubscriptionOptions
    ) -> Subscription:
        """Start a live subscription of `client`."""
        self.check_id(client, subscription_id)
        subscription = self._add(client, subscription_id, options)
        self._join(subscription)
        return subscription

    def subscribe_from(
        self,
        client: Client,
        subscription_id: str,
        options: SubscriptionOptions,
        positions: dict[Position, int],
        pool: ReplayPool,
        reader: ReplayReader,
    ) -> Subscription:
        """Start a subscription of `client` at `positions`; it becomes live after catching up.

        `reader`, of `pool`, is closed then.
        """
        subscription = self._add(client, subscription_id, options)
        subscription.catch_up_from(positions)
        self._join(subscription)
        catching = CatchUp(subscription, self, pool, reader)
        task = asyncio.get_running_loop().create_task(catching.run())
        self._catching_up[subscription] = task
        task.add_done_callback(lambda task: self._caught_up(client, subscription, catching, task))
        return subscription

    def subscription(self, client: Client, subscription_id: str) -> Subscription:
        """Return a client's subscription.

        :raises UnknownIdError: if it does not exist.
        """
        subscription = client.subscriptions.get(subscription_id)
        if subscription is None:
            raise UnknownIdError(f"there is no subscription {subscription_id!r}", field="id")
        return subscription

    def update(
        self, client: Client, subscription_id: str, options: SubscriptionOptions
    ) -> Subscription:
        """Change the options of a subscription, for events received from now on."""
        subscription = self.subscription(client, subscription_id)
        if subscription.behind and options.topics != subscription.options.topics:
            raise CatchingUpError(
                "the subscription is catching up with the past of its topics; "
                "change them when it is live"
            )
        self._groups.flush(subscription)
        self._groups.leave(subscription)
        subscription.set_options(options)
        self._join(subscription)
        return subscription

    def unsubscribe(self, client: Client, subscription_id: str) -> Subscription:
        """End a subscription and return it; its `lost` are losses not reported to the client."""
        subscription = self.subscription(client, subscription_id)
        del client.subscriptions[subscription_id]
        subscription.lose(self._end(client, subscription), Loss.DROP_OLDEST)
        return subscription

    def disconnect(
        self,
        client: Client,
        code: int,
        reason: str,
        *,
        resume: str | None = None,
        retry_after_s: int = 1,
    ) -> None:
        """Close a connection; it counts as open until :meth:`release`.

        With `resume`, a closing message with that code tells the client where to resume. Where
        frames may still be lost, only the client knows that.
        """
        if client.closing:
            return
        if resume is not None and client.subscriptions:
            client.report(final=True)
            ends = (
                {}
                if client.is_numbered
                else {name: self._position(of) for name, of in client.subscriptions.items()}
            )
            client.link.send_text(messages.closing(resume, reason, retry_after_s, self.log, ends))
        client.closing, client.close_code = True, code
        self._cancel(client)
        client.link.close(code, reason)

    def release(self, client: Client) -> None:
        """Remove a closed connection."""
        if self._clients.pop(client.id, None) is None:
            return
        client.closing = True
        self._cancel(client)
        self._tallies[Carrier(client.link.transport, client.encoding)].connections -= 1
        if not self._clients:
            self._watch.stop()

    def disconnect_all(self) -> None:
        """Close every connection with 1001 and its cursors."""
        for client in list(self._clients.values()):
            self.disconnect(
                client, CloseCode.GOING_AWAY, "the server is shutting down", resume="going_away"
            )

    def close(self) -> None:
        """Close every connection, stop batching and unregister the metrics."""
        self.disconnect_all()
        self._window.close()
        self._slow_clients.stop()
        if self._registry is not None:
            self._registry.unregister(self._collector)
            self._registry = None

    async def settled(self) -> None:
        """Wait until all catch-ups have ended, after :meth:`close`."""
        await self.snapshots.close()
        await asyncio.gather(*self._catching_up.values(), return_exceptions=True)

    # Interface for clients and subscriptions.

    def fell_behind(self, client: Client) -> None:
        """Register a slow client."""
        self._slow_clients.add(client)

    def overflowed(self, client: Client) -> None:
        """Close a connection that is too slow for its lossless subscription."""
        self.disconnect(
            client,
            CloseCode.TRY_AGAIN_LATER,
            "too much waits for a lossless subscription; resume from the cursor",
            resume="too_slow",
        )

    def kafka_topics(self, options: SubscriptionOptions) -> Sequence[str]:
        """Return the Kafka topics of a selection."""
        return [self.types[name].topic for name in sorted(options.topics)]

    def offered(self, subscription: Subscription) -> Positions:
        """Return the position after the live batches that a subscription has been offered."""
        topics = subscription.kafka_topics
        live = {at: offset for at, offset in self.positions.items() if at[0] in topics}
        return {**live, **self._groups.starts(subscription)}

    def flush(self, subscription: Subscription) -> None:
        """Send the events collected for a subscription."""
        self._groups.flush(subscription)

    def _add(
        self, client: Client, subscription_id: str, options: SubscriptionOptions
    ) -> Subscription:
        subscription = Subscription(subscription_id, options, client, self, self._budget)
        client.subscriptions[subscription_id] = subscription
        return subscription

    def _join(self, subscription: Subscription) -> None:
        topics = frozenset(subscription.kafka_topics)
        positions = (
            self._of_topic.setdefault(min(topics), {}) if len(topics) == 1 else self.positions
        )
        self._groups.join(subscription, topics, subscription.options.filter, positions)

    def _position(self, subscription: Subscription) -> messages.SubscriptionPosition:
        return messages.SubscriptionPosition(subscription.unsent(), subscription.kafka_topics)

    def _caught_up(
        self,
        client: Client,
        subscription: Subscription,
        catching: CatchUp,
        task: "asyncio.Task[None]",
    ) -> None:
        catching.close()  # the task does not do it if it was cancelled before its first step
        del self._catching_up[subscription]
        if not task.cancelled() and (failure := task.exception()) is not None:
            LOG.error("catching up failed", exc_info=failure, extra={"action": "catch_up_failed"})
            self.disconnect(
                client,
                CloseCode.INTERNAL,
                "the past could not be read; resume from the cursor",
                resume="failed",
            )

    def _cancel(self, client: Client) -> None:
        while client.subscriptions:
            _, subscription = client.subscriptions.popitem()
            self._end(client, subscription)
        self._slow_clients.discard(client)

    def _end(self, client: Client, subscription: Subscription) -> int:
        """End a subscription; return the number of queued events that are dropped."""
        task = self._catching_up.get(subscription)
        if task is not None:
            task.cancel()
        self._groups.leave(subscription)
        return client.forget(subscription)
