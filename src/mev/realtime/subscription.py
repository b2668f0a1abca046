"""A client's interest in some events, under the client's own name for it."""

import asyncio
from typing import TYPE_CHECKING

import orjson

from mev.bus.kafka import Position
from mev.realtime.outbox import Outbox
from mev.realtime.pace import Allowance
from mev.realtime.terms import Terms
from mev.wire.pb.stream_pb2 import Frame

if TYPE_CHECKING:
    from mev.realtime.client import Client
    from mev.realtime.group import Group


class Subscription:
    """What a client gets under one name, and where it stands.

    While it catches up with the past, `behind` says where it is in the partitions that it is not live in yet.
    """

    def __init__(self, client: "Client", subscription_id: str, terms: Terms, outbox: Outbox) -> None:
        self.client = client
        self.id = subscription_id
        self.json_id = orjson.dumps(subscription_id)
        self.name_field = Frame(subscription=subscription_id).SerializeToString()
        self.outbox = outbox
        self.group: Group | None = None
        self.behind: dict[Position, int] = {}
        self.task: asyncio.Task[None] | None = None
        self.idle = asyncio.Event()
        """Set while nothing waits in the outbox."""
        self.idle.set()
        self.lost = 0
        """Events dropped since this subscription was last told."""
        self.sent = 0
        """Events sent in all."""
        self.position_told_s = 0.0
        """When the client was last told how far its filter has looked."""
        self.told = 0
        """Of those, how many the client has been told of apart from the frames."""
        self.dropped = 0
        """Events dropped in all."""
        self.set_terms(terms)

    def set_terms(self, terms: Terms) -> None:
        """Take new terms; what waits in the outbox keeps its place."""
        self.terms = terms
        self.pace = Allowance(terms.max_rate) if terms.max_rate else None
