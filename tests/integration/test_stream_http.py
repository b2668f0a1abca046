"""Tests of the streams' HTTP routes: tickets, connections, disconnection, WebTransport address."""

import json
from collections.abc import Iterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.services.system import RunningSystem, running_system

SUBSCRIBE = {
    "op": "subscribe",
    "id": "s1",
    "topics": ["tick", "bund*"],
    "filter": ["simulated == true"],
    "max_rate": 7,
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Run everything embedded."""
    with running_system(tmp_path_factory.mktemp("mev") / "data", ACCESS_CACHE_S="0.3") as running:
        yield running


@pytest.fixture
def http(system: RunningSystem) -> Iterator[httpx.Client]:
    with system.client() as client:
        yield client


def open_stream(system: RunningSystem, **headers: str) -> ClientConnection:
    return connect(
        system.url.replace("http", "ws", 1) + "/api/realtime/ws", additional_headers=headers
    )


def ask(stream: ClientConnection, message: dict[str, object]) -> dict[str, object]:
    stream.send(json.dumps(message))
    answer: dict[str, object] = json.loads(stream.recv())
    return answer


def test_connections_are_listed_in_pages_and_can_be_cut_off(
    system: RunningSystem, http: httpx.Client
) -> None:
    with (
        open_stream(system, **{"X-API-Key": system.key}) as first,
        open_stream(system, **{"X-API-Key": system.key}),
    ):
        assert ask(first, SUBSCRIBE)["op"] == "subscribed"
        page = http.get("/api/realtime/connections?limit=1").raise_for_status().json()
        (item,) = page["items"]
        assert (item["transport"], item["encoding"], item["principal"]) == (
            "websocket",
            "json",
            "master",
        )
        (subscription,) = item["subscriptions"]
        assert (subscription["id"], subscription["topics"]) == ("s1", ["bundle", "tick"])
        assert (subscription["filter"], subscription["max_rate"], subscription["live"]) == (
            ["simulated == true"],
            7,
            True,
        )
        rest = (
            http.get(f"/api/realtime/connections?cursor={page['next_cursor']}")
            .raise_for_status()
            .json()
        )
        assert len(rest["items"]) == 1
        assert rest["next_cursor"] is None

        assert http.delete(f"/api/realtime/connections/{item['id']}").status_code == 204
        while (closing := json.loads(first.recv()))["op"] == "events":
            assert (
                closing["events"] == []
            )  # a subscription with a filter is told every 5 s how far it has looked
        assert (closing["op"], closing["code"], set(closing["cursors"]["s1"])) == (
            "closing",
            "disconnected",
            {"bundle", "tick"},
        )
        with pytest.raises(ConnectionClosedError) as caught:
            first.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4403
    assert (
        http.delete(f"/api/realtime/connections/{item['id']}").json()["code"]
        == "unknown_connection"
    )


def test_a_ticket_opens_a_stream_and_nothing_else(
    system: RunningSystem, http: httpx.Client
) -> None:
    made = http.post("/api/realtime/ticket").raise_for_status().json()
    assert made["expires_in_s"] == 30
    with open_stream(system) as stream:
        assert ask(stream, {"op": "auth", "ticket": made["ticket"]}) == {"op": "authenticated"}
        assert ask(stream, SUBSCRIBE)["op"] == "subscribed"
    for path in ("/api/events/tick", "/api/realtime/connections", "/api/control/commands"):
        assert (
            httpx.get(system.url + path, headers={"X-API-Key": made["ticket"]}).status_code == 403
        )


def test_a_ticket_ends_with_what_it_was_made_with(
    system: RunningSystem, http: httpx.Client
) -> None:
    key = (
        http.post("/api/auth/keys", json={"name": "reader", "scopes": ["stream:read"]})
        .raise_for_status()
        .json()
    )
    ticket = (
        httpx.post(f"{system.url}/api/realtime/ticket", headers={"X-API-Key": key["key"]})
        .raise_for_status()
        .json()["ticket"]
    )
    http.delete(f"/api/auth/keys/{key['id']}").raise_for_status()
    with open_stream(system) as stream:
        assert ask(stream, {"op": "auth", "ticket": ticket})["code"] in {
            "session_ended",
            "unauthorized",
        }
    forged = ticket[:-4] + ("AAAA" if ticket[-4:] != "AAAA" else "BBBB")
    with pytest.raises(InvalidStatus) as caught, open_stream(system, **{"X-API-Key": forged}):
        pass
    assert caught.value.response.status_code == 401


def test_where_webtransport_is(system: RunningSystem) -> None:
    where = httpx.get(f"{system.url}/api/realtime/webtransport").raise_for_status().json()
    assert where["enabled"] is True
    assert where["url"].startswith("https://127.0.0.1:")
    assert where["url"].endswith("/api/realtime/wt")
    (hash_,) = where["certificate_hashes"]
    assert hash_["algorithm"] == "sha-256"
