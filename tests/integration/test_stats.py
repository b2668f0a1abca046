"""Statistics of a running system, compared with the events that were published."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from mev.stats.query import SOL_MINT
from mev.stats.window import MAX_STEPS
from tests.integration.test_http import problem
from tests.services.clickhouse import ClickHouseHttp
from tests.services.system import RunningSystem
from tests.services.waits import until

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
WINDOW = {"from": str(START_NS), "to": "2023-11-14T23:13:20Z"}  # an hour
STEP_S = 300
STEPS = 12
FIGURES = ("count", "landed", "profit_lamports", "profit_in_other_tokens", "tip_lamports")
MINT = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
VENUES = ("Orca Whirlpool", "Raydium CLMM", "Phoenix", "Meteora DLMM")
SERVICES = ("jito", "helius", "it's \\ {x:String}")


@dataclass(frozen=True)
class Published:
    """A system and the events that were published to it."""

    http: httpx.Client
    events: dict[str, list[dict[str, Any]]]


def chain_event(draw: random.Random, number: int) -> dict[str, Any]:
    """Return a transaction; every sixteenth is outside of the window."""
    time_ns = START_NS + draw.randrange(3600) * SECOND_NS
    if number % 16 == 0:
        time_ns += draw.choice((-1, 1)) * 3600 * SECOND_NS
    tips = [
        {"account": f"t{tip}", "service": draw.choice(SERVICES), "lamports": draw.randrange(9_999)}
        for tip in range(draw.randrange(3))
    ]
    return {
        "signature": f"s{number}",
        "slot": number,
        "block_time_ns": time_ns,
        "signer": f"w{draw.randrange(30)}",
        "venues": draw.sample(VENUES, draw.randrange(3)),
        "profit_mint": draw.choice((SOL_MINT, SOL_MINT, MINT)),
        "profit_amount": draw.randrange(-(10**9), 10**10),
        "tip_lamports": sum(tip["lamports"] for tip in tips),
        "tips": tips,
    }


def market() -> dict[str, list[dict[str, Any]]]:
    draw = random.Random(12)
    opportunities = [
        {
            "id": f"o{number}",
            "slot": number,
            "detected_at_ns": START_NS + draw.randrange(3600) * SECOND_NS,
            "route": [{"dex": draw.choice(VENUES)} for _ in range(2)],
            "simulated": number % 4 == 0,
        }
        for number in range(300)
    ]
    bundles = [
        {
            "bundle_id": f"b{number}",
            "opportunity_id": f"o{number}",
            "slot": number,
            "agent_id": f"a{draw.randrange(30)}",
            "landed": draw.random() < 0.4,
            "profit_lamports": draw.randrange(-(2**63), 2**63),
            "tip_lamports": draw.randrange(2**64),
            "simulated": number % 4 == 0,
        }
        for number in range(310)
    ]
    return {
        "arbitrage": [chain_event(draw, number) for number in range(400)],
        "sandwich": [chain_event(draw, number) for number in range(200)],
        "liquidation": [],
        "opportunity": opportunities,
        "bundle": bundles,
        "tick": [{"market_id": "m", "timestamp_ns": START_NS + 5, "simulated": True}],
    }


def stored(http: httpx.Client) -> int:
    items = http.get("/api/sink/reconcile").raise_for_status().json()["items"]
    return sum(item["stored_records"] for item in items)


@pytest.fixture(scope="module", params=["embedded", pytest.param("server", marks=pytest.mark.slow)])
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    """Run a system with ClickHouse embedded or behind HTTP, and publish all events twice."""
    environment = {}
    if request.param == "server":
        server: ClickHouseHttp = request.getfixturevalue("clickhouse_http")
        environment = {**server.environment, "CLICKHOUSE_DATABASE": "stats"}
    running = RunningSystem(
        tmp_path_factory.mktemp("mev") / "data", IP_RATE_BURST="1000", **environment
    )
    running.start()
    events = market()
    with running.client() as http:
        for _ in range(2):
            for name, rows in events.items():
                if rows:
                    accepted = http.post(f"/api/events/{name}", json=rows)
                    assert accepted.json()["accepted"] == len(rows), accepted.text
        total = 2 * sum(map(len, events.values()))
        until(lambda: stored(http), lambda count: count >= total)
        yield Published(http, events)
    assert running.stop() == 0, running.log.read_text()


def get(published: Published, path: str, **parameters: Any) -> dict[str, Any]:
    answer = published.http.get(f"/api/stats/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def step_of(event: dict[str, Any], field: str) -> int | None:
    step = int((event[field] - START_NS) // (STEP_S * SECOND_NS))
    return step if 0 <= step < STEPS else None


def figures_of_chain_event(event: dict[str, Any], service: str | None = None) -> Counter[str]:
    in_sol = event["profit_mint"] == SOL_MINT
    paid = [tip["lamports"] for tip in event["tips"] if service in {None, tip["service"]}]
    return Counter(
        count=1,
        landed=1,
        profit_lamports=event["profit_amount"] if in_sol else 0,
        profit_in_other_tokens=int(not in_sol),
        tip_lamports=sum(paid),
    )


def figures_of_bundle(event: dict[str, Any]) -> Counter[str]:
    return Counter(
        count=1,
        landed=int(event["landed"]),
        profit_lamports=event["profit_lamports"],
        profit_in_other_tokens=0,
        tip_lamports=event["tip_lamports"],
    )


def groups_of_chain_event(name: str, event: dict[str, Any], by: str | None) -> set[str | None]:
    match by:
        case "type":
            return {name}
        case "signer":
            return {event["signer"]}
        case "venue":
            return set(event["venues"]) or {""}
        case "service":
            return {tip["service"] for tip in event["tips"]} or {""}
    return {None}


def chain_figures(
    published: Published, by: str | None
) -> dict[tuple[str | None, int], Counter[str]]:
    """Return the figures by group and step."""
    found: dict[tuple[str | None, int], Counter[str]] = {}
    for name in ("arbitrage", "sandwich", "liquidation"):
        for event in published.events[name]:
            if (step := step_of(event, "block_time_ns")) is not None:
                for group in groups_of_chain_event(name, event, by):
                    service = group if by == "service" else None
                    found.setdefault((group, step), Counter()).update(
                        figures_of_chain_event(event, service)
                    )
    return found


def bundle_figures(
    published: Published, by: str | None, simulated: bool
) -> dict[str | None, Counter[str]]:
    """Return the figures by group."""
    routes = {o["id"]: {leg["dex"] for leg in o["route"]} for o in published.events["opportunity"]}
    found: dict[str | None, Counter[str]] = {}
    for event in published.events["bundle"]:
        if event["simulated"] is simulated:
            groups: set[str | None] = {None}
            if by == "agent":
                groups = {event["agent_id"]}
            elif by == "venue":
                groups = set(routes.get(event["opportunity_id"], {""}))
            for group in groups:
                found.setdefault(group, Counter()).update(figures_of_bundle(event))
    return found


def in_steps(series: dict[str, Any]) -> dict[tuple[str | None, int], dict[str, int]]:
    return {
        (series["name"], step): {figure: series[figure][step] for figure in FIGURES}
        for step in range(len(series["count"]))
        if series["count"][step]
    }


def plain(figures: Counter[str]) -> dict[str, int]:
    return {figure: figures[figure] for figure in FIGURES}


def pages(published: Published, **parameters: Any) -> list[dict[str, Any]]:
    """Return the items of all pages of the top list."""
    page = get(published, "trades/top", **parameters)
    items = page["items"]
    while page["next_cursor"]:
        page = get(published, "trades/top", **parameters, cursor=page["next_cursor"])
        assert page["items"]
        items += page["items"]
    return list(items)


def test_event_counts_over_time_are_those_of_the_events_published(published: Published) -> None:
    answer = get(published, "events", **WINDOW, step_s=STEP_S, simulated="include")
    assert answer["times_ns"] == [START_NS + step * STEP_S * SECOND_NS for step in range(STEPS)]
    found = {
        (series["type"], series["simulated"], step): count
        for series in answer["series"]
        for step, count in enumerate(series["count"])
        if count
    }
    expected: Counter[tuple[str, bool, int]] = Counter()
    for name, field in (
        ("arbitrage", "block_time_ns"),
        ("sandwich", "block_time_ns"),
        ("opportunity", "detected_at_ns"),
        ("tick", "timestamp_ns"),
    ):
        for event in published.events[name]:
            if (step := step_of(event, field)) is not None:
                expected[name, event.get("simulated", False), step] += 1
    assert found == expected


def test_simulated_events_are_excluded_by_default_and_in_series_of_their_own(
    published: Published,
) -> None:
    def series(**parameters: str) -> list[tuple[str, bool]]:
        answer = get(published, "events", **WINDOW, type="opportunity", **parameters)
        return [(each["type"], each["simulated"]) for each in answer["series"]]

    assert series() == [("opportunity", False)]
    assert series(simulated="include") == [("opportunity", False), ("opportunity", True)]
    assert series(simulated="only") == [("opportunity", True)]


@pytest.mark.parametrize("by", [None, "type", "signer", "venue", "service"])
def test_chain_figures_over_time_are_those_of_the_events_published(
    published: Published, by: str | None
) -> None:
    parameters = {**WINDOW, "source": "chain", **({"by": by} if by else {})}
    answer = get(published, "trades", **parameters, step_s=STEP_S, limit=3)
    expected = chain_figures(published, by)
    shown = {series["name"] for series in answer["series"]}
    others: dict[tuple[str | None, int], Counter[str]] = {}
    for (group, step), figures in expected.items():
        key = (group if group in shown else None, step)
        others.setdefault(key, Counter()).update(figures)
    found = {
        place: figures for series in answer["series"] for place, figures in in_steps(series).items()
    }
    assert found == {key: plain(figures) for key, figures in others.items()}
    if by == "signer":
        ranked = sorted(
            {group for group, _ in expected},
            key=lambda name: (
                -sum(
                    figures["profit_lamports"]
                    for (group, _), figures in expected.items()
                    if group == name
                )
            ),
        )
        assert [series["name"] for series in answer["series"]] == [*ranked[:3], None]


@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize("by", [None, "agent", "venue"])
def test_bundle_figures_are_those_of_the_bundles_published(
    published: Published, by: str | None, simulated: bool
) -> None:
    parameters = {"simulated": "only" if simulated else "exclude", **({"by": by} if by else {})}
    answer = get(published, "trades", **parameters, limit=20)
    expected = bundle_figures(published, by, simulated)
    shown = {series["name"] for series in answer["series"]}
    grouped: dict[str | None, Counter[str]] = {}
    for group, figures in expected.items():
        grouped.setdefault(group if group in shown else None, Counter()).update(figures)
    found = {
        series["name"]: {figure: sum(series[figure]) for figure in FIGURES}
        for series in answer["series"]
    }
    assert found == {group: plain(figures) for group, figures in grouped.items()}
    assert {series["simulated"] for series in answer["series"]} == {simulated}


@pytest.mark.parametrize("step_s", [8, 300, 777, 3600, 100_000])
def test_sums_over_steps_equal_the_sum_over_the_window(published: Published, step_s: int) -> None:
    parameters = {**WINDOW, "source": "chain", "by": "signer"}
    answer = get(published, "trades", **parameters, step_s=step_s, limit=20)
    totals = {item["name"]: item for item in pages(published, **parameters)}
    sums = {
        series["name"]: {figure: sum(series[figure]) for figure in FIGURES}
        for series in answer["series"]
    }
    for name, figures in sums.items():
        members = [name] if name is not None else sorted(set(totals) - set(sums))
        assert figures == {
            figure: sum(totals[member][figure] for member in members) for figure in FIGURES
        }


@pytest.mark.parametrize("order", FIGURES)
@pytest.mark.parametrize(("source", "by"), [("chain", "signer"), ("bundles", "agent")])
def test_pages_of_the_top_list_hold_every_group_once_in_order(
    published: Published, source: str, by: str, order: str
) -> None:
    window = WINDOW if source == "chain" else {}
    parameters = {**window, "source": source, "by": by, "order": order, "simulated": "include"}
    paged = pages(published, **parameters, limit=7)
    assert paged == get(published, "trades/top", **parameters)["items"]
    assert [-item[order] for item in paged] == sorted(-item[order] for item in paged)
    if source == "chain":
        expected: dict[tuple[str | None, bool], Counter[str]] = {}
        for (group, _), figures in chain_figures(published, by).items():
            expected.setdefault((group, False), Counter()).update(figures)
    else:
        expected = {
            (group, flag): figures
            for flag in (False, True)
            for group, figures in bundle_figures(published, by, flag).items()
        }
    found = {
        (item["name"], item["simulated"]): {figure: item[figure] for figure in FIGURES}
        for item in paged
    }
    assert len(found) == len(paged)
    assert found == {key: plain(figures) for key, figures in expected.items()}


def test_names_limit_the_groups(published: Published) -> None:
    parameters = {"by": "agent", "simulated": "include"}
    everything = get(published, "trades/top", **parameters)["items"]
    wanted = ["a1", "a2", "' OR 1 = 1"]
    expected = [item for item in everything if item["name"] in wanted]
    assert pages(published, **parameters, name=wanted, limit=1) == expected
    series = get(published, "trades", **parameters, name=wanted, limit=1)["series"]
    assert sum(sum(one["count"]) for one in series) == sum(one["count"] for one in expected)


@pytest.mark.parametrize(
    ("path", "parameters", "parameter"),
    [
        ("events", {"from": "yesterday"}, "from"),
        ("events", {"from": "2026-01-01T00:00:00"}, "from"),
        ("events", {"to": str(2**63)}, "to"),
        ("events", {"from": "5", "to": "5"}, "from"),
        ("events", {**WINDOW, "step_s": 7}, "step_s"),
        ("trades", {**WINDOW, "by": "signer"}, "by"),
        ("trades", {**WINDOW, "by": "agent", "source": "chain"}, "by"),
        ("trades", {**WINDOW, "name": "a1"}, "name"),
    ],
)
def test_invalid_parameter_is_refused_by_name(
    published: Published, path: str, parameters: dict[str, Any], parameter: str
) -> None:
    answer = published.http.get(f"/api/stats/{path}", params=parameters)
    assert problem(answer, 400, "invalid_query")["parameter"] == parameter


@pytest.mark.parametrize("cursor", ["x", "bnVsbA==", "WyJ4IiwxLDIsIjMiLCJhIix0cnVlXQ=="])
def test_invalid_cursor_is_refused(published: Published, cursor: str) -> None:
    parameters = {**WINDOW, "by": "agent", "cursor": cursor}
    problem(published.http.get("/api/stats/trades/top", params=parameters), 400, "invalid_cursor")


def test_cursor_of_another_list_is_refused(published: Published) -> None:
    parameters = {**WINDOW, "source": "chain", "by": "signer", "limit": "5"}
    cursor = get(published, "trades/top", **parameters)["next_cursor"]
    answer = published.http.get(
        "/api/stats/trades/top", params={**parameters, "order": "count", "cursor": cursor}
    )
    problem(answer, 400, "invalid_cursor")


def test_longest_answer_is_bounded(published: Published) -> None:
    parameters = {"from": "0", "to": str(500 * 4_000_000 * SECOND_NS), "step_s": 4_000_000}
    answer = get(published, "events", **parameters, simulated="include")
    assert len(answer["times_ns"]) == MAX_STEPS
    assert {len(series["count"]) for series in answer["series"]} == {MAX_STEPS}


def test_statistics_require_the_permission_to_read_events(published: Published) -> None:
    answer = httpx.get(f"{published.http.base_url}/api/stats/events")
    assert answer.status_code == 401
    document = published.http.get("/openapi.json").json()
    for path in ("events", "trades", "trades/top"):
        assert document["paths"][f"/api/stats/{path}"]["get"]["x-permission"] == "events:read"
