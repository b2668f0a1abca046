"""Tests of extreme times in every request: refused with a named error, never a server error."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest
from websockets.sync.client import connect

from mev.cli.tail import parse_start
from mev.client.cursor import wire_start
from tests.services.system import RunningSystem

BEYOND = [
    "9999-12-31T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-23:59",
    "9999-12-31T23:59:59+14:00",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00-14:00",
    "2262-04-12T00:00:00Z",
    "1969-12-31T23:59:59Z",
    "1970-01-01T00:00:00+01:00",
]
LIMITS = ["1970-01-01T00:00:00Z", "2262-04-11T23:47:16Z", "2262-04-12T01:00:00+02:00"]


def is_time(schema: dict[str, Any]) -> bool:
    return schema.get("format") == "date-time" or any(map(is_time, schema.get("anyOf", [])))


def time_places(
    schema: dict[str, Any], components: dict[str, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Yield the path of each time in a body."""
    if is_time(schema):
        yield place
    for inner in (schema, *schema.get("anyOf", [])):
        if "$ref" in inner:
            name = inner["$ref"].rpartition("/")[2]
            yield from time_places(components[name], components, place)
    for name, inner in schema.get("properties", {}).items():
        yield from time_places(inner, components, (*place, name))


def places(document: dict[str, Any]) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Yield (method, path, where, place) of every time that a request can have."""
    components = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                if is_time(parameter.get("schema", {})):
                    yield method, path, "query", (parameter["name"],)
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema", {})
            for place in time_places(schema, components):
                yield method, path, "body", place


def ask(
    http: httpx.Client, method: str, path: str, where: str, place: tuple[str, ...], time: str
) -> httpx.Response:
    target = re.sub(r"{\w+}", "none", path)
    if where == "query":
        return http.request(method, target, params={place[0]: time})
    body: Any = time
    for name in reversed(place):
        body = {name: body}
    return http.request(method, target, json=body)


def objections(answer: httpx.Response) -> list[str]:
    """Return the places that a 422 names."""
    return [error["place"] for error in answer.json()["errors"]]


def test_times_beyond_the_calendar_are_refused_by_name_on_every_route(http: httpx.Client) -> None:
    found = list(places(http.get("/openapi.json").json()))
    walked = {(path, ".".join(place)) for _, path, _, place in found}
    assert walked >= {
        ("/api/control/audit-log", "from"),
        ("/api/control/policy", "effective_from"),
        ("/api/datasets/export", "time.to"),
    }
    for method, path, where, place in found:
        named = ".".join((where, *place))
        for time in BEYOND:
            answer = ask(http, method, path, where, place, time)
            assert answer.status_code == 422, (path, time, answer.text)
            assert named in objections(answer), (path, time)
        for time in LIMITS:
            answer = ask(http, method, path, where, place, time)
            assert answer.status_code < 500, (path, time, answer.text)
            if answer.status_code == 422 and "errors" in answer.json():
                assert named not in objections(answer), (path, time)


@pytest.mark.parametrize("time", BEYOND)
def test_stream_refuses_to_start_beyond_the_calendar(system: RunningSystem, time: str) -> None:
    url = system.url.replace("http", "ws", 1) + "/api/realtime/ws"
    with connect(url, additional_headers={"X-API-Key": system.key}) as stream:
        start = wire_start(parse_start(time))
        stream.send(
            orjson.dumps({"op": "subscribe", "id": "s", "topics": ["tick"], "from": start}).decode()
        )
        answer = orjson.loads(stream.recv(timeout=20))
        assert (answer["op"], answer["code"]) == ("error", "invalid_field"), answer
        assert "1970" in answer["detail"]


def test_audit_log_is_searched_up_to_the_ends_of_the_calendar(http: httpx.Client) -> None:
    http.post("/api/control/kill-switch", json={"scope": "all", "level": "HALTED", "reason": "t"})
    now = datetime.now(UTC).isoformat()
    for query in ({"from": LIMITS[0], "to": LIMITS[1]}, {"to": now}):
        assert http.get("/api/control/audit-log", params=query).is_success
