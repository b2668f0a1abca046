"""HTTP beside the streams: who is connected, disconnecting one, tickets, where WebTransport is."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from mev.auth.dependencies import StreamManage, StreamRead
from mev.auth.tokens import Keyring
from mev.core.errors import NotFoundError
from mev.realtime import connections
from mev.realtime.connections import Connection
from mev.realtime.hub import Hub
from mev.realtime.websocket import Close
from mev.realtime.webtransport.gateway import Gateway

TICKET_LIFETIME_S = 30


class UnknownConnectionError(NotFoundError):
    """There is no such connection in this process."""

    code = "unknown_connection"


class Connections(BaseModel):
    """A page of the connections of this process."""

    items: list[Connection]
    next_cursor: int | None


class Ticket(BaseModel):
    """Opens one's stream where a page cannot send headers: `?ticket=`, or the first message."""

    ticket: str
    expires_in_s: int


class CertificateHash(BaseModel):
    """For a browser's `serverCertificateHashes`."""

    algorithm: str
    value: str


class WebTransport(BaseModel):
    """Where WebTransport is; hashes only when its certificate is one of its own making."""

    enabled: bool
    url: str | None = None
    certificate_hashes: list[CertificateHash] = []


def router(hub: Hub, keyring: Keyring, gateway: Gateway | None) -> APIRouter:
    """Return the routes of the streams; without a `gateway` there is no WebTransport."""
    routes = APIRouter(prefix="/api/realtime", tags=["realtime"])

    @routes.get("/connections", summary="List the open connections of this process")
    async def list_connections(
        _: StreamManage, cursor: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> Connections:
        """Return transport, principal, subscriptions, lag, and what was sent and dropped of each."""
        found = connections.page(hub.clients, cursor, limit + 1, hub.positions)
        return Connections(items=found[:limit], next_cursor=found[limit - 1].id if len(found) > limit else None)

    @routes.delete("/connections/{connection_id}", status_code=204, response_class=Response, summary="Disconnect a client")
    async def disconnect(_: StreamManage, connection_id: int) -> None:
        """Close a connection with 4403, and tell the client where it could go on."""
        client = hub.clients.get(connection_id)
        if client is None:
            raise UnknownConnectionError(f"no connection {connection_id} is open in this process")
        hub.dismiss(client, Close.DISCONNECTED, "disconnected by an operator", resume="disconnected")

    @routes.post("/ticket", summary="Get a ticket for one's own stream")
    async def ticket(principal: StreamRead) -> Ticket:
        """Return a short-lived ticket: it opens the streams of whoever asks, and nothing else."""
        return Ticket(ticket=keyring.ticket(principal, lifetime_s=TICKET_LIFETIME_S), expires_in_s=TICKET_LIFETIME_S)

    @routes.get("/webtransport", summary="Say where WebTransport is")
    async def where(request: Request) -> WebTransport:
        """Return its address and, for browsers, the hashes of its certificates."""
        if gateway is None:
            return WebTransport(enabled=False)
        return WebTransport.model_validate(gateway.describe(request.url.hostname or ""))

    return routes
