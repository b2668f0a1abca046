"""Tests of the commands' requests to the API."""

from typing import Any

import pytest

from mev.cli.api import AmbiguousIdError, ApiError, NotNowError, ask_api, poll, whole_id
from mev.store.folder import NotRunningError
from tests.unit.cli.api import BUSY, Answer, ScriptedApi

ONE, OTHER = "019a0000-0000-7000-8000-000000000001", "019a0000-ffff-7000-8000-000000000002"


def test_an_error_begins_with_what_it_says_and_ends_with_where(api: ScriptedApi) -> None:
    api.tell("GET /api/jobs/1", Answer({"detail": "no job 1"}, 404))
    with pytest.raises(ApiError) as raised:
        ask_api("GET", "/api/jobs/1")
    assert raised.value.detail == f"no job 1 (GET {api.url}/api/jobs/1)"


def test_a_poll_asks_again_as_late_as_it_is_told(api: ScriptedApi) -> None:
    limited = Answer({"detail": "too many"}, 429, {"Retry-After": "7"})
    api.tell("GET /api/jobs/1", BUSY, limited, Answer(b"", 502), Answer({"id": "1"}))
    assert poll("/api/jobs/1").json() == {"id": "1"}
    assert api.pauses == [1, 7, 1]


def test_a_poll_outlives_a_restart_on_another_port(api: ScriptedApi) -> None:
    api.tell("GET /api/jobs/1", Answer({"id": "1"}))
    api.lost()
    api.on_pause = api.found
    assert poll("/api/jobs/1").json() == {"id": "1"}


def test_a_connection_that_is_refused_counts_as_busy(api: ScriptedApi) -> None:
    api.close()
    with pytest.raises(NotNowError, match=f"does not answer: .* \\(GET {api.url}/api/jobs/1\\)"):
        poll("/api/jobs/1", patience_s=4)
    assert 2 <= sum(api.pauses) <= 4


def test_a_poll_gives_up_after_a_minute_and_at_what_does_not_pass(api: ScriptedApi) -> None:
    api.tell("GET /api/busy", Answer({"detail": "the server is busy"}, 503, {"Retry-After": "9"}))
    with pytest.raises(NotNowError, match=r"^the server is busy"):
        poll("/api/busy")
    assert sum(api.pauses) == 54
    api.pauses.clear()
    api.tell(
        "GET /api/late", Answer({"detail": "come back tomorrow"}, 429, {"Retry-After": "86400"})
    )
    with pytest.raises(NotNowError, match="come back tomorrow"):
        poll("/api/late")
    api.tell("GET /api/gone", Answer({"detail": "gone"}, 404))
    with pytest.raises(ApiError, match=r"^gone"):
        poll("/api/gone")
    assert api.pauses == []


def test_what_is_no_poll_is_asked_once(api: ScriptedApi) -> None:
    api.tell("POST /api/training/train", BUSY)
    with pytest.raises(NotNowError):
        ask_api("POST", "/api/training/train", {})
    api.lost()
    with pytest.raises(NotRunningError):
        ask_api("GET", "/api/jobs")
    assert len(api.asked) == 1
    assert api.pauses == []


def test_an_id_is_found_by_its_beginning_on_any_page(api: ScriptedApi) -> None:
    pages: list[dict[str, Any]] = [
        {"items": [{"id": OTHER}], "next_cursor": "x"},
        {"items": [{"id": ONE}], "next_cursor": None},
    ]
    api.tell("GET /api/jobs", *pages, *pages, *pages)
    assert whole_id("019a0000-0", "/api/jobs") == ONE
    with pytest.raises(AmbiguousIdError, match=f"{OTHER}, {ONE}"):
        whole_id("019a0000", "/api/jobs")
    assert whole_id("019a0001", "/api/jobs") == "019a0001"
    api.asked.clear()
    assert [whole_id(given, "/api/jobs") for given in (ONE, "019a000", "champion")] == [
        ONE,
        "019a000",
        "champion",
    ]
    assert api.asked == []
