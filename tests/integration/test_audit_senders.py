"""Tests of the sender in audit records: principal, credential and address."""

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest

from tests.services.system import RunningSystem, running_system
from tests.services.waits import until

LOG = "/api/control/audit-log"
PASSWORD = "a-long-enough-password-4"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    with running_system(tmp_path_factory.mktemp("senders") / "data") as running:
        yield running


@pytest.fixture
def http(system: RunningSystem) -> Iterator[httpx.Client]:
    with system.client() as http:
        yield http


@pytest.fixture(scope="module")
def operator(system: RunningSystem) -> dict[str, str]:
    """Give the headers of a person who runs the fleet."""
    with system.client() as http:
        body = {"name": "olga", "password": PASSWORD, "role": "operator"}
        http.post("/api/auth/users", json=body).raise_for_status()
        login = (
            http.post("/api/auth/login", json={"name": "olga", "password": PASSWORD})
            .raise_for_status()
            .json()
        )
    return {"Authorization": f"Bearer {login['access_token']}"}


def records(http: httpx.Client, **filters: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = http.get(LOG, params=filters).raise_for_status().json()["items"]
    return items


def wait_for(http: httpx.Client, count: int, **filters: str) -> list[dict[str, Any]]:
    return until(lambda: records(http, **filters), lambda found: len(found) >= count)


def test_kill_switch_record_says_who_what_and_from_where(
    system: RunningSystem, http: httpx.Client, operator: dict[str, str]
) -> None:
    order = {"scope": "all", "level": "HALTED", "reason": "spread gone"}
    answer = httpx.post(f"{system.url}/api/control/kill-switch", json=order, headers=operator)
    command_id = answer.raise_for_status().json()["id"]
    wait_for(http, 1, actor="user:olga", action="control.level")
    (record,) = [
        one for one in records(http, action="control.*") if one["correlation_id"] == command_id
    ]
    assert (record["actor"], record["remote"], record["outcome"]) == (
        "user:olga",
        "127.0.0.1",
        "ok",
    )
    assert record["session"]
    details = orjson.loads(record["details_json"])
    assert (details["level"], details["reason"], details["issuer"]) == (
        "HALTED",
        "spread gone",
        "olga",
    )
    assert details["key_id"]


def test_every_record_of_a_request_has_its_sender(http: httpx.Client) -> None:
    http.post("/api/auth/keys", json={"name": "seen", "scopes": ["stream:read"]}).raise_for_status()
    (record, *_) = wait_for(http, 1, action="key.create")
    assert (record["actor"], record["remote"]) == ("master", "127.0.0.1")


def test_configuration_is_recorded_with_its_value_and_secrets_are_hidden(
    http: httpx.Client,
) -> None:
    body = {"config_key": "log_level", "config_value": "INFO", "hot_reload": True}
    http.post("/api/control/config", json=body).raise_for_status()
    record = wait_for(http, 1, action="control.config")[0]
    assert orjson.loads(record["details_json"])["config"] == {"log_level": "INFO"}


def test_refused_and_anonymous_attempts_are_recorded_with_their_number(
    system: RunningSystem, http: httpx.Client, operator: dict[str, str]
) -> None:
    path = "/api/control/kill-switch"
    for _ in range(30):
        assert httpx.post(f"{system.url}{path}", json={}).status_code == 401
    assert httpx.post(f"{system.url}{path}", json={"scope": 5}, headers=operator).status_code == 422
    found = until(
        lambda: records(http, action="control.refused", actor="anonymous"),
        lambda found: _counted(found) >= 30,
    )
    assert _counted(found) == 30
    assert {(one["object"], one["outcome"], one["remote"]) for one in found} == {
        (f"POST {path}", "401", "127.0.0.1")
    }
    (wrong,) = wait_for(http, 1, action="control.refused", actor="user:olga")
    assert (wrong["outcome"], bool(wrong["session"])) == ("422", True)


def _counted(found: list[dict[str, Any]]) -> int:
    """Return how many attempts the records count; a new period begins a new record."""
    return sum(orjson.loads(one["details_json"])["count"] for one in found)


@pytest.mark.parametrize("name", ["master", "system", "anonymous", "api-1", "API-x"])
def test_names_of_the_system_are_no_users(http: httpx.Client, name: str) -> None:
    refused = http.post(
        "/api/auth/users", json={"name": name, "password": PASSWORD, "role": "viewer"}
    )
    assert (refused.status_code, refused.json()["code"]) == (400, "reserved_name")
