from prometheus_client import CollectorRegistry

from mev.realtime.batch import Encoding
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.wire.registry import EVENT_TYPES
from tests.unit.realtime.events import options, ticks
from tests.unit.realtime.links import MemoryLink


async def test_metrics_follow_what_happens() -> None:
    registry = CollectorRegistry()
    hub = Hub(EVENT_TYPES, HubLimits(batch_max_size=2, json_events_per_s=1), registry)
    links = [MemoryLink(), MemoryLink()]
    clients = [
        hub.admit(link, encoding, "test") for link, encoding in zip(links, Encoding, strict=True)
    ]
    for client in clients:
        hub.subscribe(client, "a", options("tick"))
    hub.push(ticks([0, 1]))

    def value(name: str, encoding: str, **more: str) -> float | None:
        return registry.get_sample_value(
            f"mev_realtime_{name}", {"transport": "websocket", "encoding": encoding, **more}
        )

    names = ["connections", "events_sent_total", "frames_sent_total", "bytes_sent_total"]
    assert [value(name, "json") for name in names] == [
        1,
        1,
        1,
        sum(len(message.payload) for message in links[0].messages()),
    ]
    assert [value(name, "protobuf") for name in names] == [
        1,
        2,
        1,
        sum(len(message.payload) for message in links[1].messages()),
    ]
    assert [
        value("events_dropped_total", "json", policy=policy)
        for policy in ("max_rate", "drop_oldest")
    ] == [1, 0]
    hub.release(clients[0])
    assert value("connections", "json") == 0
    hub.close()
    hub.close()
    assert value("connections", "json") is None
