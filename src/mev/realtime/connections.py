"""What there is to know of the open connections."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from mev.realtime.client import Client
from mev.realtime.subscription import Subscription
from mev.realtime.tally import Encoding
from mev.realtime.terms import Delivery, OnSlow


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionView:
    """A subscription as it stands: `queued` events wait for the client, `dropped` it will not get, `behind` are before the live end."""

    id: str
    topics: list[str]
    filter: list[str]
    on_slow: OnSlow
    max_rate: int | None
    delivery: Delivery
    live: bool
    sent: int
    dropped: int
    queued: int
    behind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An open connection; `queued_bytes` is what it has not taken."""

    id: int
    transport: str
    encoding: Encoding
    remote: str
    principal: str | None
    since: datetime
    subscriptions: list[SubscriptionView]
    sent: int
    dropped: int
    queued_bytes: int


def page(clients: Mapping[int, Client], after: int, limit: int, live: Mapping[tuple[str, int], int]) -> list[Connection]:
    """Return up to `limit` connections whose ids follow `after`, in their order."""
    return [_connection(client, live) for client in islice(_following(clients, after), limit)]


def _following(clients: Mapping[int, Client], after: int) -> Iterator[Client]:
    return (client for number, client in clients.items() if number > after)


def _connection(client: Client, live: Mapping[tuple[str, int], int]) -> Connection:
    subscriptions = [_subscription(subscription, live) for subscription in client.subscriptions.values()]
    return Connection(
        id=client.id,
        transport=client.link.transport,
        encoding=client.encoding,
        remote=client.remote,
        principal=client.principal,
        since=datetime.fromtimestamp(client.since_s, UTC),
        subscriptions=subscriptions,
        sent=client.sent,
        dropped=client.dropped,
        queued_bytes=client.waiting_bytes() + client.link.backlog(),
    )


def _subscription(subscription: Subscription, live: Mapping[tuple[str, int], int]) -> SubscriptionView:
    terms, behind = subscription.terms, subscription.behind
    return SubscriptionView(
        id=subscription.id,
        topics=sorted(terms.topics),
        filter=terms.shown_filter(),
        on_slow=terms.on_slow,
        max_rate=terms.max_rate,
        delivery=terms.delivery,
        live=not behind,
        sent=subscription.sent,
        dropped=subscription.dropped,
        queued=subscription.outbox.events,
        behind=sum(max(0, live.get(at, 0) - offset) for at, offset in behind.items()),
    )
