"""Events in, batches out: the hub knows the clients, the groups, and which group wants what.

Everything here runs in the event-loop thread. The bus calls :meth:`Hub.push`; the transport's side calls :meth:`Hub.admit`,
:meth:`Hub.subscribe`, :meth:`Hub.unsubscribe`, :meth:`Hub.dismiss` and :meth:`Hub.release`.
"""

from collections.abc import Mapping, Sequence
from itertools import count

from prometheus_client import CollectorRegistry

from mev.realtime.batch import Block, Topic
from mev.realtime.client import Client, Connection, Link, Subscription
from mev.realtime.errors import DuplicateIdError, TooManySubscriptionsError, UnknownIdError
from mev.realtime.group import Group
from mev.realtime.limits import Limits
from mev.realtime.tally import Encoding, Tally, TallyCollector
from mev.realtime.watch import Watch
from mev.realtime.websocket import Close
from mev.realtime.window import Window
from mev.wire.registry import EventType
from mev.wire.render import renderer


class Hub:
    """Fan events out to clients by topic."""

    def __init__(self, types: Mapping[str, EventType], limits: Limits, registry: CollectorRegistry | None = None) -> None:
        self.limits = limits
        self.topics = frozenset(types)
        self._topics = {type_.topic: Topic(name, type_.topic, renderer(type_)) for name, type_ in types.items()}
        self._window = Window(limits.batch_window_ms / 1000)
        self._clients: dict[int, Client] = {}
        self._ids = count(1)
        self._groups: dict[frozenset[str], Group] = {}
        self._groups_by_topic: dict[str, tuple[Group, ...]] = {}
        self._tallies = {encoding: Tally() for encoding in Encoding}
        self._watch = Watch(limits, self._clients, self.dismiss)
        self._registry = registry
        self._collector = TallyCollector(self._tallies)
        if registry is not None:
            registry.register(self._collector)

    def push(self, topic: str, partition: int, offsets: Sequence[int], values: Sequence[bytes]) -> None:
        """Take one consumed batch: `values[i]` was published to Kafka topic `topic` at `offsets[i]`.

        The sequences are kept by reference until their events are sent; the caller leaves them as they are.
        """
        groups = self._groups_by_topic.get(topic)
        if not groups:
            return
        block = Block(self._topics[topic], partition, offsets, values)
        for group in groups:
            group.add(block)

    def set_window(self, batch_window_ms: float) -> None:
        """Change how long an event waits for its batch."""
        self._window.resize(batch_window_ms / 1000)

    @property
    def full(self) -> bool:
        """Whether there is no room for another connection."""
        return len(self._clients) >= self.limits.connections

    def admit(self, link: Link, encoding: Encoding, remote: str) -> Client:
        """Take a new connection in."""
        tally = self._tallies[encoding]
        client = Client(next(self._ids), link, encoding=encoding, remote=remote, limits=self.limits, tally=tally)
        self._clients[client.id] = client
        tally.connections += 1
        self._watch.start()
        return client

    def subscribe(self, client: Client, subscription_id: str, topics: frozenset[str]) -> Subscription:
        """Send `client` every event of `topics` from now on."""
        if subscription_id in client.subscriptions:
            raise DuplicateIdError(f"there is a subscription {subscription_id!r} already; unsubscribe it first", field="id")
        if len(client.subscriptions) >= self.limits.subscriptions:
            raise TooManySubscriptionsError(f"a connection may have {self.limits.subscriptions} subscriptions; unsubscribe one first")
        subscription = client.subscriptions[subscription_id] = Subscription(client, subscription_id, topics)
        self._group(topics).join(subscription)
        return subscription

    def unsubscribe(self, client: Client, subscription_id: str) -> int:
        """End a subscription; return how many events it lost and was not told of."""
        subscription = client.subscriptions.pop(subscription_id, None)
        if subscription is None:
            raise UnknownIdError(f"there is no subscription {subscription_id!r}", field="id")
        self._leave(subscription)
        return client.forget(subscription)

    def dismiss(self, client: Client, code: int, reason: str) -> None:
        """Close a connection; it counts as open until :meth:`release`."""
        if client.closing:
            return
        client.closing = True
        self._cancel(client)
        client.link.close(code, reason)

    def release(self, client: Client) -> None:
        """Forget a connection that is gone."""
        if self._clients.pop(client.id, None) is None:
            return
        client.closing = True
        self._cancel(client)
        self._tallies[client.encoding].connections -= 1
        if not self._clients:
            self._watch.stop()

    def connections(self) -> list[Connection]:
        """Return what there is to know of each open connection."""
        return [client.describe() for client in self._clients.values()]

    def close(self) -> None:
        """Close every connection with 1001, stop batching and take the metrics back."""
        for client in list(self._clients.values()):
            self.dismiss(client, Close.GOING_AWAY, "the server is shutting down")
        self._window.close()
        if self._registry is not None:
            self._registry.unregister(self._collector)
            self._registry = None

    def _cancel(self, client: Client) -> None:
        while client.subscriptions:
            _, subscription = client.subscriptions.popitem()
            self._leave(subscription)
            client.forget(subscription)

    def _group(self, topics: frozenset[str]) -> Group:
        group = self._groups.get(topics)
        if group is None:
            group = self._groups[topics] = Group(topics, self.limits.batch_max_size, self._window)
            self._index()
        return group

    def _leave(self, subscription: Subscription) -> None:
        group = self._groups[subscription.topics]
        group.leave(subscription)
        if not group:
            del self._groups[subscription.topics]
            self._index()

    def _index(self) -> None:
        self._groups_by_topic = {
            topic.kafka_topic: tuple(group for group in self._groups.values() if topic.name in group.topics)
            for topic in self._topics.values()
        }
