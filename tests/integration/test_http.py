"""The HTTP interface of a running system: ingest, reading back, problems, health."""

import json
import math
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from mev.core import confine, native
from mev.wire.pb.events_pb2 import Bundle, Opportunity
from mev.wire.registry import EVENT_TYPES
from tests.services.system import RunningSystem
from tests.services.waits import until_document

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def delimited(*values: bytes) -> bytes:
    return b"".join(bytes([len(value)]) + value for value in values)


def listed(http: httpx.Client, path: str, count: int) -> list[dict[str, Any]]:
    """Return the items behind `path` once there are `count`."""
    return list(until_document(http, path, lambda page: len(page["items"]) >= count)["items"])


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that `answer` is the problem `code`, and return it."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    return body


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, orjson.dumps({"bundle_id": "json-object", "slot": 7, "landed": True})),
        (
            JSON,
            orjson.dumps(
                [{"bundle_id": "json-array-1", "slot": 7}, {"bundle_id": "json-array-2", "slot": 7}]
            ),
        ),
        (NDJSON, b'{"bundle_id":"ndjson-1","slot":7}\n\n{"bundle_id":"ndjson-2","slot":7}\n'),
        (
            PROTOBUF,
            delimited(
                Bundle(bundle_id="pb-1", slot=7).SerializeToString(),
                Bundle(bundle_id="pb-2", slot=7).SerializeToString(),
            ),
        ),
    ],
    ids=["object", "array", "ndjson", "protobuf"],
)
def test_every_form_of_body_is_published_and_stored(
    http: httpx.Client, headers: dict[str, str], body: bytes
) -> None:
    answer = http.post("/api/events/bundle", content=body, headers=headers)
    assert answer.status_code == 202
    wanted = {
        part.decode()
        for part in (
            b"json-object",
            b"json-array-1",
            b"json-array-2",
            b"ndjson-1",
            b"ndjson-2",
            b"pb-1",
            b"pb-2",
        )
        if part in body
    }
    assert answer.json() == {"accepted": len(wanted), "rejected": 0, "errors": []}
    for name in wanted:
        (stored,) = listed(http, f"/api/events/bundle?bundle_id={name}", 1)
        assert stored["slot"] == 7


def test_good_records_are_published_beside_bad_ones(http: httpx.Client) -> None:
    body = [
        {"bundle_id": "kept-1"},
        {"bundle_id": 5},
        {"bundle_id": "x", "nope": 1},
        {"bundle_id": "kept-2"},
        {"slot": 3},
        7,
    ]
    answer = http.post("/api/events/bundle", json=body)
    assert answer.status_code == 202
    assert answer.json() == {
        "accepted": 2,
        "rejected": 4,
        "errors": [
            {"index": 1, "reason": "bundle_id: expected a string, got an integer"},
            {"index": 2, "reason": "nope: unknown field of Bundle"},
            {"index": 4, "reason": "bundle_id: missing or empty"},
            {"index": 5, "reason": "expected an object, got an integer"},
        ],
    }
    listed(http, "/api/events/bundle?bundle_id=kept-1", 1)
    listed(http, "/api/events/bundle?bundle_id=kept-2", 1)


@pytest.mark.parametrize(
    ("headers", "body", "status", "code", "place"),
    [
        (JSON, b"{", 400, "malformed_body", "line 1 column 2"),
        (JSON, b'{"bundle_id": "\xff"}', 400, "malformed_body", "column"),
        (JSON, b"", 400, "malformed_body", "line 1"),
        (JSON, b"[]", 400, "malformed_body", "no event"),
        (
            NDJSON,
            b'{"bundle_id": "\xff"}\n',
            422,
            "all_records_rejected",
            "record 0: not JSON at column",
        ),
        (
            JSON,
            b'{"bundle_id":"b","slot":-1}',
            422,
            "all_records_rejected",
            "slot: -1 is out of range",
        ),
        (
            JSON,
            b'{"bundle_id":"b","slot":18446744073709551616}',
            422,
            "all_records_rejected",
            "slot:",
        ),
        (
            JSON,
            b'{"bundle_id":"b","slot":"x"}',
            422,
            "all_records_rejected",
            "slot: expected an integer, got a string",
        ),
        (
            JSON,
            b'{"bundle_id":"b","landed":"yes"}',
            422,
            "all_records_rejected",
            "landed: expected true or false",
        ),
        (JSON, b'{"bundle_id":"b","nope":1}', 422, "all_records_rejected", "nope: unknown field"),
        (PROTOBUF, b"\x05ab", 400, "malformed_body", "byte 0"),
        (PROTOBUF, b"\xff" * 11, 400, "malformed_body", "byte 0 is not a varint"),
        (PROTOBUF, b"\x03\x0a\x01\xff", 422, "all_records_rejected", "record 0: not a Bundle"),
        ({"Content-Type": "text/plain"}, b"{}", 415, "unsupported_media_type", "text/plain"),
    ],
)
def test_bad_input_is_refused_with_its_place(
    http: httpx.Client, headers: dict[str, str], body: bytes, status: int, code: str, place: str
) -> None:
    detail = problem(http.post("/api/events/bundle", content=body, headers=headers), status, code)[
        "detail"
    ]
    assert place in detail
    assert http.get("/api/health/").status_code == 200


def test_an_unknown_event_type_is_named_with_the_known_ones(http: httpx.Client) -> None:
    for answer in (
        http.post("/api/events/nope", json={}),
        http.get("/api/events/nope"),
        http.get("/api/datasets/schema/nope"),
    ):
        assert problem(answer, 404, "unknown_event_type")["known"] == list(EVENT_TYPES)


def test_nobody_else_says_how_far_jobs_are(http: httpx.Client) -> None:
    problem(
        http.post("/api/events/job", json={"id": "a", "timestamp_ns": 1}),
        403,
        "reserved_event_type",
    )
    assert http.get("/api/events/job").is_success


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/api/control/command", JSON), ("/api/events/bundle", JSON), ("/api/events/bundle", NDJSON)],
)
def test_json_that_is_nested_too_deeply_hears_so(
    http: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    depth = 8_000 if path.startswith("/api/control") else 100_000  # orders are small
    answer = http.post(path, content=b"[" * depth + b"]" * depth, headers=headers)
    assert answer.status_code in {400, 422}
    assert "nested too deeply" in answer.json()["detail"]


@pytest.mark.parametrize("depth", [33, 200, 900])
def test_a_field_that_is_nested_too_deeply_is_named(http: httpx.Client, depth: int) -> None:
    nested: dict[str, Any] = {}
    for _ in range(depth):
        nested = {"properties": nested}
    body = {
        "agent_id": "deep",
        "module": "deep",
        "public_key": "ab" * 32,
        "actions": [{"name": "x", "params": nested}],
    }
    answer = problem(http.post("/api/control/agents", json=body), 422, "invalid_request")
    assert answer["errors"] == [
        {
            "place": "body.actions.0.params",
            "reason": "Value error, nested too deeply: 32 levels are allowed",
        }
    ]
    problem(
        http.post("/api/events/bundle", json={"bundle_id": nested}), 422, "all_records_rejected"
    )


def test_a_body_that_is_no_text_hears_so(http: httpx.Client) -> None:
    answer = problem(
        http.post("/api/control/command", content=b'{"module": "\xff"}', headers=JSON),
        400,
        "malformed_body",
    )
    assert "the body cannot be read as JSON" in answer["detail"]


def test_a_huge_body_is_refused_before_it_is_read(http: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b" " * (1 << 20)

    for headers in (JSON | {"Content-Length": str(300 << 20)}, JSON):
        try:
            answer = http.post("/api/events/bundle", content=chunks(), headers=headers)
        except (
            httpx.WriteError
        ):  # the server answered and closed while the body was still on its way
            continue
        problem(answer, 413, "body_too_large")
    assert http.get("/api/health/").status_code == 200


def test_pages_go_newest_first_and_miss_nothing(http: httpx.Client) -> None:
    events = [
        {"id": f"page-{number:02}", "slot": 1_000 + number // 3, "kind": "paging"}
        for number in range(25)
    ]
    assert http.post("/api/events/opportunity", json=events).json()["accepted"] == 25
    listed(http, "/api/events/opportunity?kind=paging", 25)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"kind": "paging", "limit": "10"} | ({"cursor": cursor} if cursor else {})
        page = http.get("/api/events/opportunity", params=query).json()
        seen += [item["id"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == [event["id"] for event in reversed(events)]


def test_history_joins_the_stream(http: httpx.Client, system: RunningSystem) -> None:
    """Pages have the events stored at the first page, the stream the rest: no gap, no repeat."""

    def post(first: int, end: int) -> None:
        http.post(
            "/api/events/opportunity",
            json=[{"id": f"join-{n:03}", "slot": n, "kind": "joining"} for n in range(first, end)],
        )

    post(0, 20)
    listed(http, "/api/events/opportunity?kind=joining", 20)
    query = {"kind": "joining", "limit": "15"}
    first = http.get("/api/events/opportunity", params=query).json()
    post(20, 30)
    listed(http, "/api/events/opportunity?kind=joining", 30)
    second = http.get(
        "/api/events/opportunity", params={**query, "cursor": first["next_cursor"]}
    ).json()
    assert second["resume"] == first["resume"]
    items = [*first["items"], *second["items"]]
    assert [item["id"] for item in items] == [f"join-{n:03}" for n in reversed(range(20))]
    places = {(item["partition"], item["offset"]) for item in items}
    assert len(places) == 20
    assert all(partition >= 0 and offset >= 0 for partition, offset in places)
    url = system.url.replace("http", "ws", 1) + "/api/realtime/ws"
    with connect(url, additional_headers={"X-API-Key": system.key}) as stream:
        terms = {
            "topics": ["opportunity"],
            "filter": ['kind == "joining"'],
            "from": {"resume": first["resume"]},
        }
        stream.send(json.dumps({"op": "subscribe", "id": "s", **terms}))
        assert json.loads(stream.recv())["start"] == "resumed"
        found: list[str] = []
        while len(found) < 10:
            found += [event["id"] for event in json.loads(stream.recv())["events"]]
    assert sorted(found) == [f"join-{n:03}" for n in range(20, 30)]


def test_history_without_events_gives_a_place_too(http: httpx.Client) -> None:
    page = http.get("/api/events/liquidation", params={"signature": "none"}).json()
    assert (page["items"], page["next_cursor"]) == ([], None)
    assert page["resume"]


def test_filters_compare_fields(http: httpx.Client) -> None:
    events = [
        {
            "signature": f"filter-{number}",
            "slot": 5_000 + number,
            "venues": ["Orca", "Raydium"] if number % 2 else ["Phoenix"],
        }
        for number in range(10)
    ]
    http.post("/api/events/arbitrage", json=events)
    listed(http, "/api/events/arbitrage?slot_min=5000&slot_max=5009", 10)

    def signatures(query: str) -> list[str]:
        return [
            item["signature"] for item in http.get(f"/api/events/arbitrage?{query}").json()["items"]
        ]

    assert signatures("slot_min=5003&slot_max=5005") == ["filter-5", "filter-4", "filter-3"]
    assert signatures("slot_min=5000&venues=Orca") == [
        "filter-9",
        "filter-7",
        "filter-5",
        "filter-3",
        "filter-1",
    ]
    assert signatures("signature=filter-4") == ["filter-4"]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("nope=1", "nope"),
        ("slot=x", "slot"),
        ("slot_min=", "slot_min"),
        ("venues_min=a", "venues_min"),
    ],
)
def test_a_wrong_query_names_its_parameter(http: httpx.Client, query: str, parameter: str) -> None:
    assert (
        problem(http.get(f"/api/events/arbitrage?{query}"), 400, "invalid_query")["parameter"]
        == parameter
    )


def test_a_page_that_is_too_long_is_refused(http: httpx.Client) -> None:
    assert (
        "query.limit"
        in problem(http.get("/api/events/tick?limit=1001"), 422, "invalid_request")["detail"]
    )


def test_a_value_cannot_change_the_query(http: httpx.Client) -> None:
    answer = http.get("/api/events/bundle", params={"bundle_id": "x' OR 1=1 --"})
    assert (answer.json()["items"], answer.json()["next_cursor"]) == ([], None)


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_every_type_has_a_schema_with_units(http: httpx.Client, name: str) -> None:
    schema = http.get(f"/api/datasets/schema/{name}").json()
    assert schema["type"] == name
    units = {field["name"]: field["unit"] for field in schema["fields"]}
    assert all(unit == "lamports" for field, unit in units.items() if field.endswith("_lamports"))
    assert set(schema["json_schema"]["properties"]) == set(units)


def test_every_route_but_health_wants_the_key(system: RunningSystem, http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/api/events/{type}", "/api/health/", "/metrics", "/api/datasets/schema/{type}"} <= set(
        paths
    )
    for key in ({}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
        with httpx.Client(base_url=system.url, headers=key) as anonymous:
            for path, operations in paths.items():
                for method in operations:
                    answer = anonymous.request(method, path.replace("{type}", "tick"))
                    if path in {"/api/health/", "/api/health/ready"}:
                        assert answer.is_success
                    elif path not in {
                        "/api/auth/login",
                        "/api/auth/refresh",
                        "/api/realtime/webtransport",
                        "/api/realtime/ws",
                    }:
                        problem(answer, 401, "unauthorized")
            for path in ("/docs", "/openapi.json"):
                assert anonymous.get(path).status_code == 401


def test_documentation_needs_nothing_from_elsewhere(system: RunningSystem) -> None:
    with httpx.Client(base_url=system.url, auth=("anyone", system.key)) as browser:
        page = browser.get("/docs")
        assert page.is_success
        for asset in ("/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css"):
            assert asset in page.text
            assert browser.get(asset).is_success
        assert "https://" not in page.text


def test_unknown_paths_and_methods_are_problems(http: httpx.Client) -> None:
    problem(http.get("/nope"), 404, "not_found")
    problem(http.delete("/api/health/ready"), 405, "method_not_allowed")


def test_readiness_says_how_each_dependency_does(http: httpx.Client) -> None:
    ready = http.get("/api/health/ready").json()
    assert ready["ready"] is True
    assert {"kafka", "clickhouse", "redis", "sink"} == set(ready["dependencies"])
    assert all(dependency["latency_ms"] >= 0 for dependency in ready["dependencies"].values())
    assert ready["dependencies"]["kafka"]["embedded"] is True
    assert ready["confinement"] == str(confine.strongest())


def test_health_details_show_lag_freshness_and_latencies(http: httpx.Client) -> None:
    http.post("/api/events/tick", json={"market_id": "details", "timestamp_ns": 1})
    listed(http, "/api/events/tick?market_id=details", 1)
    details = http.get("/api/health/details").raise_for_status().json()
    assert details["readiness"].keys() == http.get("/api/health/ready").json().keys()
    pipeline = details["pipeline"]
    assert pipeline["sink"]["oldest_waiting_s"] >= 0
    assert datetime.fromisoformat(pipeline["sink"]["last_stored_at"]).year > 2020
    assert {"publish", "receive", "flush", "queue", "insert"} == set(pipeline["stages"])
    assert pipeline["stages"]["publish"]["p99_ms"] >= pipeline["stages"]["publish"]["p50_ms"] > 0
    assert pipeline["stages"]["insert"]["count"] >= 1
    anonymous = httpx.get(f"{http.base_url}/api/health/details")
    assert anonymous.status_code == 401


def test_performance_agrees_with_the_metrics(http: httpx.Client) -> None:
    for index in range(20):
        http.post("/api/events/tick", json={"market_id": "performance", "timestamp_ns": index + 1})
    listed(http, "/api/events/tick?market_id=performance", 20)
    before = histograms(http)
    found = http.get("/api/health/metrics/performance").raise_for_status().json()
    after = histograms(http)
    stages = {
        "publish": ("mev_publish_seconds", ""),
        "insert": ("mev_sink_insert_seconds", ""),
        "receive": ("mev_realtime_stage_seconds", "receive"),
        "flush": ("mev_realtime_stage_seconds", "flush"),
        "queue": ("mev_realtime_stage_seconds", "queue"),
    }
    assert found["stages"].keys() == {"http", *stages}
    for stage, key in stages.items():
        count = found["stages"][stage]["count"]
        assert before[key][math.inf] <= count <= after[key][math.inf]
        assert found["stages"][stage]["per_s"] == pytest.approx(count / found["window_s"], abs=0.01)
    route = found["routes"]["/api/events/{type}"]
    buckets = after["mev_http_seconds", "/api/events/{type}"]
    assert route["count"] == buckets[math.inf]
    for share in (50, 90, 99):
        wanted = buckets[math.inf] * share / 100
        high = next(bound for bound in sorted(buckets) if buckets[bound] >= wanted)
        low = max((bound for bound in buckets if bound < high), default=0.0)
        inside = (wanted - buckets.get(low, 0)) / (buckets[high] - buckets.get(low, 0))
        assert route[f"p{share}_ms"] == pytest.approx(
            1000 * (low + (high - low) * inside), abs=0.01
        )
    accepted = found["throughput"]["events_accepted_per_s"]
    assert accepted * found["window_s"] >= 19.9
    assert httpx.get(f"{http.base_url}/api/health/metrics/performance").status_code == 401


def histograms(http: httpx.Client) -> dict[tuple[str, str], dict[float, float]]:
    """Return the buckets in `/metrics`, by the histogram and its label."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for family in text_string_to_metric_families(http.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            if "le" in sample.labels:
                labels = dict(sample.labels)
                bound = float(labels.pop("le"))
                found.setdefault((family.name, "".join(labels.values())), {})[bound] = sample.value
    return found


def test_system_load_shows_machine_and_process(http: httpx.Client, system: RunningSystem) -> None:
    found = http.get("/api/health/metrics/system").raise_for_status().json()
    assert len(found["machine"]["cpu"]["cores"]) == os.cpu_count()
    assert found["machine"]["memory"]["total_bytes"] > 0
    assert found["machine"]["disk"]["data_free_bytes"] > 0
    process = found["processes"].pop("mev")
    assert found["processes"] == {}
    assert process["pid"] == system.pid
    assert process["resident_bytes"] > 10**7
    assert 0 < process["open_files"]["count"] < process["open_files"]["limit"]
    assert process["gc_pauses"].keys() == {"0", "1", "2"}
    lag = until_document(
        http,
        "/api/health/metrics/system",
        lambda load: load["processes"]["mev"]["event_loop_lag"]["count"],
    )["processes"]["mev"]["event_loop_lag"]
    assert lag["p50_ms"] <= lag["p90_ms"] <= lag["p99_ms"]
    assert httpx.get(f"{http.base_url}/api/health/metrics/system").status_code == 401


def test_metrics_count_what_was_done(http: httpx.Client) -> None:
    http.post("/api/events/tick", json={"market_id": "metrics", "timestamp_ns": 1})
    http.get("/api/control/commands/none")
    text = http.get("/metrics").text
    assert 'mev_ingest_events_total{type="tick"} ' in text
    assert 'mev_ingest_events_total{type="tick"} 0.0' not in text
    assert f"mev_native {float(native.is_used())}\n" in text
    assert 'mev_http_requests_total{method="POST",route="/api/events/{type}",status="202"}' in text
    asked = 'method="GET",route="/api/control/commands/{command_id}",status="404"'
    assert f"mev_http_requests_total{{{asked}}}" in text


def test_an_event_sent_twice_is_one_event(http: httpx.Client) -> None:
    event = {"id": "twice", "slot": 77}
    for _ in range(2):
        assert http.post("/api/events/opportunity", json=event).status_code == 202
        listed(http, "/api/events/opportunity?id=twice", 1)
    body = delimited(Opportunity(id="after-twice", slot=77).SerializeToString())
    http.post("/api/events/opportunity", content=body, headers=PROTOBUF)
    listed(http, "/api/events/opportunity?id=after-twice", 1)
    assert len(listed(http, "/api/events/opportunity?id=twice", 1)) == 1


def test_times_that_are_not_nanoseconds_are_refused_beside_good_ones(tmp_path: Path) -> None:
    system = RunningSystem(tmp_path / "data")
    del system.environment["INGEST_TIME_EARLIEST"]
    now_ns = time.time_ns()
    times = {
        "ms": now_ns // 10**6,
        "s": now_ns // 10**9,
        "past": -5,
        "future": 92 * 10**17,
        "now": now_ns,
    }
    lines = [
        orjson.dumps({"market_id": name, "timestamp_ns": t, "bid_price": 1})
        for name, t in times.items()
    ]
    system.start()
    try:
        with system.client() as http:
            answer = http.post("/api/events/tick", content=b"\n".join(lines), headers=NDJSON)
            assert answer.status_code == 202
            assert answer.json()["accepted"] == 1
            reasons = [error["reason"] for error in answer.json()["errors"]]
            assert ["looks like milliseconds" in r for r in reasons] == [True, False, False, False]
            assert ["looks like seconds" in r for r in reasons] == [False, True, False, False]
            refused = http.post("/api/events/tick", content=lines[0], headers=NDJSON)
            assert (
                "looks like milliseconds" in problem(refused, 422, "all_records_rejected")["detail"]
            )
            assert [item["market_id"] for item in listed(http, "/api/events/tick", 1)] == ["now"]
    finally:
        system.kill()


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("slot", "-1"),
        ("slot", str(2**64)),
        ("slot_min", "١٢"),
        ("slot_max", "1_0"),
        ("slot", " 1"),
        ("slot", "9" * 5000),
        ("profit_lamports_min", str(-(2**63) - 1)),
        ("profit_lamports", str(2**63)),
    ],
)
def test_number_out_of_range_in_a_query_is_named(
    http: httpx.Client, parameter: str, value: str
) -> None:
    answer = http.get("/api/events/bundle", params={parameter: value})
    assert parameter in problem(answer, 400, "invalid_query")["detail"]


@pytest.mark.parametrize(
    "cursor",
    ["!", "WzFd", "WzE4NDQ2NzQ0MDczNzA5NTUxNjE2LCJhIl0="],  # the last one is [2^64, "a"]
)
def test_wrong_cursor_is_refused(http: httpx.Client, cursor: str) -> None:
    answer = http.get("/api/events/bundle", params={"cursor": cursor})
    assert problem(answer, 400, "invalid_cursor")["parameter"] == "cursor"


def test_number_below_int64_is_out_of_range(http: httpx.Client) -> None:
    for number in (-(2**63) - 1, -(2**63) - 100):
        body = b'{"bundle_id":"low","profit_lamports":%d}' % number
        answer = http.post("/api/events/bundle", content=body, headers=JSON)
        detail = problem(answer, 422, "all_records_rejected")["detail"]
        assert "profit_lamports" in detail
        assert "out of range" in detail
