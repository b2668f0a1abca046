"""HTTP routes of the streams: connections, disconnecting, tickets, WebTransport's address."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from mev.auth.dependencies import StreamManage, StreamRead
from mev.auth.tokens import Keyring
from mev.core.errors import NotFoundError
from mev.core.paging import page_of
from mev.core.query import QueryInt
from mev.realtime.batch import Encoding
from mev.realtime.client import Client
from mev.realtime.hub import Hub
from mev.realtime.link import CloseCode
from mev.realtime.options import DeliveryMode, OnSlow
from mev.realtime.subscription import Subscription
from mev.realtime.webtransport.server import WebTransportServer

TICKET_LIFETIME_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionView:
    """Status of a subscription.

    `queued` events wait for the client, `dropped` ones are lost, and `behind` is the distance to
    live.
    """

    id: str
    topics: list[str]
    filter: list[str]
    on_slow: OnSlow
    max_rate: int | None
    delivery: DeliveryMode
    live: bool
    sent: int
    dropped: int
    queued: int
    behind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatus:
    """Status of an open connection; `queued_bytes` have not been read by the client."""

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


class ConnectionsPage(BaseModel):
    """A page of this process's connections."""

    items: list[ConnectionStatus]
    next_cursor: int | None


class TicketView(BaseModel):
    """Ticket that opens a stream where a page cannot send headers.

    It is sent in an `auth` message, or on WebTransport as `?ticket=` in the URL.
    """

    ticket: str
    expires_in_s: int


class CertificateHash(BaseModel):
    """Entry of a browser's `serverCertificateHashes`."""

    algorithm: str
    value: str


class WebTransportView(BaseModel):
    """Address of WebTransport, with hashes if its certificate is self-signed."""

    enabled: bool
    url: str | None = None
    certificate_hashes: list[CertificateHash] = []


def router(hub: Hub, keyring: Keyring, wt_server: WebTransportServer | None) -> APIRouter:
    """Return the routes of the streams; without a `wt_server` there is no WebTransport."""
    routes = APIRouter(prefix="/api/realtime", tags=["realtime"])

    @routes.get("/connections", summary="List the open connections of this process")
    async def list_connections(
        _: StreamManage,
        cursor: Annotated[QueryInt, Query(ge=0)] = 0,
        limit: Annotated[QueryInt, Query(ge=1, le=1000)] = 100,
    ) -> ConnectionsPage:
        """Return transport, principal, subscriptions, lag, sent and dropped events of each."""
        found = page(hub.clients, cursor, limit + 1, hub.positions)
        items, following = page_of(found, limit, lambda connection: connection.id)
        return ConnectionsPage(items=list(items), next_cursor=following)

    @routes.delete(
        "/connections/{connection_id}",
        status_code=204,
        response_class=Response,
        summary="Disconnect a client",
    )
    async def disconnect(_: StreamManage, connection_id: int) -> None:
        """Close a connection with 4403; the client is sent its cursors."""
        client = hub.clients.get(connection_id)
        if client is None:
            raise NotFoundError(
                f"no connection {connection_id} is open in this process", code="unknown_connection"
            )
        hub.disconnect(
            client, CloseCode.DISCONNECTED, "disconnected by an operator", resume="disconnected"
        )

    @routes.post("/ticket", summary="Get a ticket for one's own stream")
    async def ticket(principal: StreamRead) -> TicketView:
        """Return a short-lived ticket that authenticates streams of the caller."""
        return TicketView(
            ticket=keyring.ticket(principal, lifetime_s=TICKET_LIFETIME_S),
            expires_in_s=TICKET_LIFETIME_S,
        )

    @routes.get("/webtransport", summary="Say where WebTransport is")
    async def where(request: Request) -> WebTransportView:
        """Return the URL and, for browsers, the hashes of the certificate."""
        if wt_server is None:
            return WebTransportView(enabled=False)
        return WebTransportView.model_validate(wt_server.describe(request.url.hostname or ""))

    return routes


def page(
    clients: Mapping[int, Client], after: int, limit: int, live: Mapping[tuple[str, int], int]
) -> list[ConnectionStatus]:
    """Return up to `limit` connections with ids above `after`, in order."""
    return [_connection(client, live) for client in islice(_following(clients, after), limit)]


def _following(clients: Mapping[int, Client], after: int) -> Iterator[Client]:
    return (client for number, client in clients.items() if number > after)


def _connection(client: Client, live: Mapping[tuple[str, int], int]) -> ConnectionStatus:
    subscriptions = [
        _subscription(subscription, live) for subscription in client.subscriptions.values()
    ]
    return ConnectionStatus(
        id=client.id,
        transport=client.link.transport,
        encoding=client.encoding,
        remote=client.remote,
        principal=client.principal,
        since=datetime.fromtimestamp(client.since_s, UTC),
        subscriptions=subscriptions,
        sent=client.sent,
        dropped=client.dropped,
        queued_bytes=client.queued_bytes() + client.link.backlog(),
    )


def _subscription(
    subscription: Subscription, live: Mapping[tuple[str, int], int]
) -> SubscriptionView:
    options, behind = subscription.options, subscription.behind
    return SubscriptionView(
        id=subscription.id,
        topics=sorted(options.topics),
        filter=options.shown_filter(),
        on_slow=options.on_slow,
        max_rate=options.max_rate,
        delivery=options.delivery,
        live=not behind,
        sent=subscription.sent,
        dropped=subscription.dropped,
        queued=subscription.queued,
        behind=sum(max(0, live.get(at, 0) - offset) for at, offset in behind.items()),
    )
