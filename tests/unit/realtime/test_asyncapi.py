"""The AsyncAPI document against the protocol: what is sent and what is accepted is what it says."""

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mev.auth.model import MASTER
from mev.core.errors import MevError
from mev.realtime import messages
from mev.realtime.access import StreamAccess
from mev.realtime.batch import Encoding
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.metrics import Loss
from mev.realtime.requests import RequestHandler
from mev.wire.pb.events_pb2 import AgentMetrics, Opportunity
from mev.wire.registry import EVENT_TYPES
from mev.wire.render import renderer
from tests.unit.realtime.links import MemoryLink
from tests.unit.realtime.memory_log import MemoryLog, MemoryPool
from tools import asyncapi

DOCUMENT = asyncapi.document()


def validator(kind: str) -> Draft202012Validator:
    schemas = asyncapi.from_client() if kind == "client" else asyncapi.from_server()
    return Draft202012Validator(
        {"components": DOCUMENT["components"], "oneOf": list(schemas.values())}
    )


CLIENT, SERVER = validator("client"), validator("server")
EVENT = Draft202012Validator(
    {"components": DOCUMENT["components"], "$ref": "#/components/schemas/event"}
)


async def conversation(says: list[dict[str, Any]], transport: str) -> list[dict[str, Any]]:
    """Return all answers of the server to the given messages, up to the close."""
    log = MemoryLog()
    log.ends = dict.fromkeys(log.ends, 12)
    pool = MemoryPool(log, chunk=5)
    limits = HubLimits(batch_window_ms=1)
    hub = Hub(EVENT_TYPES, limits, log="log", replay_pool=pool)  # type: ignore[arg-type]
    log.deliver(hub)
    link = MemoryLink(transport=transport)
    client = hub.admit(link, Encoding.JSON, "test")
    absent: Any = None
    access = StreamAccess(hub, absent)
    session = RequestHandler(hub, client, access, absent, MASTER)
    for message in says:
        work = session.receive_text(orjson.dumps(message))
        if work is not None:
            await work
        log.ends = {at: end + 1 for at, end in log.ends.items()}
        log.deliver(hub)
        for group in list(hub._groups):
            group.flush()
        for subscription in client.subscriptions.values():
            subscription.lose(1, Loss.DROP_OLDEST)
        client.report()
    hub.close()
    await hub.settled()
    return [dict(message.json) for message in link.messages()]


SAYS: list[dict[str, Any]] = [
    {
        "op": "subscribe",
        "id": "live",
        "topics": ["tick"],
        "filter": ["bid_price >= 0"],
        "max_rate": 100,
    },
    {
        "op": "subscribe",
        "id": "past",
        "topics": ["tick", "bundle"],
        "from": "earliest",
        "on_slow": "lossless",
    },
    {
        "op": "subscribe",
        "id": "cursor",
        "topics": ["tick"],
        "from": {"cursor": {"tick": {"0": 3}}, "log": "other"},
    },
    {"op": "subscribe", "id": "now", "topics": ["tick"], "snapshot": True},
    {"op": "update", "id": "live", "filter": None, "on_slow": "conflate"},
    {"op": "ping", "id": "p"},
    {"op": "ping"},
    {"op": "unsubscribe", "id": "live"},
    {"op": "unsubscribe", "id": "unknown"},
    {"op": "subscribe", "id": "wrong", "topics": ["nothing"]},
    {"op": "subscribe", "id": "wrong", "topics": ["tick"], "filter": ["nothing > 1"]},
    {"op": "dance"},
]


@pytest.mark.parametrize("transport", ["websocket", "webtransport"])
async def test_everything_the_server_sends_is_in_the_document(transport: str) -> None:
    said = await conversation(SAYS, transport)
    for message in said:
        SERVER.validate(message)
    expected = {
        "subscribed",
        "updated",
        "unsubscribed",
        "events",
        "snapshot",
        "pong",
        "error",
        "closing",
    }
    assert {message["op"] for message in said} == expected | (
        {"progress"} if transport == "webtransport" else set()
    )


def test_every_event_type_is_rendered_as_the_document_says() -> None:
    for event in EVENT_TYPES.values():
        EVENT.validate(orjson.loads(renderer(event)(event.message().SerializeToString())))
    opportunity = Opportunity(
        id="o", probability=math.nan, features=[math.inf, 1], route=[{"dex": "d"}]
    )
    EVENT.validate(
        orjson.loads(renderer(EVENT_TYPES["opportunity"])(opportunity.SerializeToString()))
    )
    metrics = AgentMetrics(agent_id="a", gauges={"g": math.nan}, counters={"c": 2**64 - 1})
    EVENT.validate(
        orjson.loads(renderer(EVENT_TYPES["agent_metrics"])(metrics.SerializeToString()))
    )
    EVENT.validate(orjson.loads(renderer(EVENT_TYPES["tick"])(b"\xff")))


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2**63),
    st.text(max_size=8),
    st.sampled_from(
        [
            "live",
            "earliest",
            "drop_oldest",
            "conflate",
            "lossless",
            "stream",
            "datagram",
            "tick",
            "*",
        ]
    ),
)
nested = st.one_of(
    values,
    st.lists(st.one_of(values, st.just("tick"), st.just("bid_price > 1")), max_size=3),
    st.dictionaries(
        st.sampled_from(["cursor", "log", "slot", "time", "resume", "tick"]), values, max_size=2
    ),
    st.just({"cursor": {"tick": {"0": 1}}, "log": "x"}),
    st.just({"time": "2026-01-31T12:00:00Z"}),
)
fields = st.sampled_from(
    [
        "id",
        "topics",
        "filter",
        "on_slow",
        "max_rate",
        "from",
        "delivery",
        "snapshot",
        "api_key",
        "ticket",
        "other",
    ]
)
asked = st.builds(
    lambda op, given, fitting: {
        "op": op,
        **({"id": "s", "topics": ["tick"]} if fitting else {}),
        **given,
    },
    st.sampled_from(["auth", "subscribe", "update", "unsubscribe", "ping", "dance"]),
    st.dictionaries(fields, nested, max_size=4),
    st.booleans(),
)


@given(asked)
def test_what_the_server_accepts_is_in_the_document(message: dict[str, Any]) -> None:
    try:
        request = messages.read(message, EVENT_TYPES)
        if isinstance(request, messages.Update):
            tick = messages.read({"op": "subscribe", "id": "s", "topics": ["tick"]}, EVENT_TYPES)
            assert isinstance(tick, messages.Subscribe)
            request.options(tick.options, EVENT_TYPES)
    except MevError:
        return
    CLIENT.validate(message)
