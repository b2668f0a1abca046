"""Server-Sent Events of a running system, read as `curl -N` and `EventSource` do."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.system import RunningSystem, running_system

URL = "/api/realtime/sse"


@dataclass
class Sse:
    """One message of the stream."""

    id: str = ""
    event: str = ""
    retry: str = ""
    data: Any = None


class Reader:
    """Reads the messages of one answer."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.last_id = ""
        self._lines = answer.iter_lines()

    def next(self) -> Sse:
        """Return the next message; comments are passed over."""
        message = Sse()
        for line in self._lines:
            if not line and message.data is not None:
                self.last_id = message.id or self.last_id
                return message
            name, _, value = line.partition(": ")
            if name in {"id", "event", "retry"}:
                setattr(message, name, value)
            elif name == "data":
                message.data = json.loads(value)
        raise StopIteration

    def events(self, count: int) -> list[dict[str, Any]]:
        """Return the next `count` events."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            message = self.next()
            if message.data["op"] == "events":
                assert message.event == ""  # EventSource gives it to onmessage
                assert message.id == message.data["resume"]
                found += message.data["events"]
        return found


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    with running_system(tmp_path_factory.mktemp("sse") / "data", ACCESS_CACHE_S="0.3") as running:
        yield running


@contextmanager
def opened(system: RunningSystem, query: str, **headers: str) -> Iterator[Reader]:
    headers = {"X-API-Key": system.key, **headers}
    with httpx.stream("GET", f"{system.url}{URL}?{query}", headers=headers, timeout=30) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield Reader(answer)


def publish(system: RunningSystem, first: int, count: int, market: str = "m") -> None:
    ticks = [{"market_id": market, "timestamp_ns": n} for n in range(first, first + count)]
    with system.client() as http:
        answer = http.post("/api/events/tick", json=ticks).raise_for_status()
    assert answer.json()["rejected"] == 0


def times(events: list[dict[str, Any]]) -> list[int]:
    return [event["timestamp_ns"] for event in events]


def test_stream_goes_on_behind_last_event_id_without_hole_or_repeat(system: RunningSystem) -> None:
    query = 'topics=tick&filter=market_id == "resume"'
    with opened(system, query) as reader:
        subscribed = reader.next()
        assert (subscribed.event, subscribed.data["start"]) == ("subscribed", "live")
        assert subscribed.id == subscribed.data["resume"]
        publish(system, 1, 10, "resume")
        assert times(reader.events(10)) == list(range(1, 11))
        last_id = reader.last_id
    publish(system, 11, 5, "resume")
    with opened(system, query, **{"Last-Event-ID": last_id}) as reader:
        assert reader.next().data["start"] == "resumed"
        assert times(reader.events(5)) == list(range(11, 16))
    with opened(system, f"{query}&resume={last_id}") as reader:
        assert times(reader.events(5)) == list(range(11, 16))


def test_snapshot_comes_before_live_events(system: RunningSystem) -> None:
    publish(system, 100, 3, "snapshot")
    with opened(system, 'topics=tick&snapshot=true&filter=market_id == "snapshot"') as reader:
        assert reader.next().event == "subscribed"
        part = reader.next()
        assert (part.event, part.data["left"], times(part.data["events"])) == ("snapshot", 0, [102])
        publish(system, 200, 1, "snapshot")
        assert times(reader.events(1)) == [200]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "invalid_field"),
        ("topics=nothing", 400, "unknown_topic"),
        ("topics=tick&filter=nothing > 1", 400, "bad_filter"),
        ("topics=tick&form=live", 400, "unknown_field"),
        ("topics=tick&from=yesterday", 400, "invalid_field"),
        ("topics=tick&from=slot:12", 400, "no_slot"),
        ("topics=tick&from=live&from=earliest", 400, "invalid_field"),
        ("topics=tick&max_rate=-1", 400, "invalid_field"),
        ("topics=tick&snapshot=yes", 400, "invalid_field"),
        ("topics=tick&resume=abc", 400, "bad_resume"),
        ("topics=tick&filter=%ff", 400, "invalid_field"),
        ("&".join(["topics=tick"] * 200), 400, "invalid_field"),
    ],
)
def test_wrong_parameters_are_a_problem_before_the_stream(
    system: RunningSystem, query: str, status: int, code: str
) -> None:
    answer = httpx.get(f"{system.url}{URL}?{query}", headers={"X-API-Key": system.key})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    with system.client() as http:
        open_ones = http.get("/api/realtime/connections").json()["items"]
    assert [each for each in open_ones if each["transport"] == "sse"] == []


def test_stream_needs_a_key_and_answers_head(system: RunningSystem) -> None:
    assert httpx.get(f"{system.url}{URL}?topics=tick").status_code == 401
    head = httpx.head(f"{system.url}{URL}?topics=tick", headers={"X-API-Key": system.key})
    assert (head.status_code, head.headers["content-type"]) == (
        200,
        "text/event-stream; charset=utf-8",
    )


def test_stream_is_listed_and_ends_with_its_key(system: RunningSystem) -> None:
    with system.client() as http:
        made = http.post("/api/auth/keys", json={"name": "sse", "scopes": ["stream:read"]})
        key = made.raise_for_status().json()
        with opened(system, "topics=tick,bund*", **{"X-API-Key": key["key"]}) as reader:
            reader.next()
            items = http.get("/api/realtime/connections").json()["items"]
            (item,) = [each for each in items if each["transport"] == "sse"]
            assert item["subscriptions"][0]["topics"] == ["bundle", "tick"]
            http.delete(f"/api/auth/keys/{key['id']}").raise_for_status()
            closed = reader.next()
            assert (closed.event, closed.data["code"]) == ("closed", 4401)
            with pytest.raises(StopIteration):
                reader.next()


def test_disconnected_stream_says_where_to_go_on(system: RunningSystem) -> None:
    with system.client() as http, opened(system, "topics=tick") as reader:
        reader.next()
        items = http.get("/api/realtime/connections").json()["items"]
        (item,) = [each for each in items if each["transport"] == "sse"]
        http.delete(f"/api/realtime/connections/{item['id']}").raise_for_status()
        closing = reader.next()
        assert (closing.event, closing.data["code"]) == ("closing", "disconnected")
        assert closing.id == closing.data["resume"]["sse"]
        assert int(closing.retry) == 1000 * closing.data["retry_after_s"]


def test_stop_of_the_system_ends_the_stream_with_its_place(tmp_path: Path) -> None:
    running = RunningSystem(tmp_path / "data", SHUTDOWN_TIMEOUT_S="30")
    running.start()
    try:
        with opened(running, "topics=tick") as reader:
            reader.next()
            publish(running, 1, 3)
            assert times(reader.events(3)) == [1, 2, 3]
            assert running.stop() == 0, running.log.read_text()
            closing = reader.next()
            assert (closing.event, closing.data["code"], closing.id) == (
                "closing",
                "going_away",
                reader.last_id,
            )
            assert reader.next().event == "closed"
    finally:
        running.kill()
    assert "timeout graceful shutdown exceeded" not in running.log.read_text()
