"""Tests of readiness while ClickHouse's disk is full, and after space is free again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.disk import fill, small_disk
from tests.services.system import RunningSystem
from tests.services.waits import until

DISK_BYTES = 96 << 20
EVENTS = 50


@pytest.fixture
def system(tmp_path: Path) -> Iterator[RunningSystem]:
    """Run everything embedded, with the tables on a small disk."""
    with small_disk(tmp_path / "data" / "clickhouse", DISK_BYTES):
        running = RunningSystem(
            tmp_path / "data", HEALTH_WRITE_CHECK_S="0.1", SINK_RETRY_MAX_S="0.5"
        )
        running.start()
        yield running
        assert running.stop() == 0, running.log.read_text()


def readiness(http: httpx.Client) -> tuple[int, dict[str, Any]]:
    answer = http.get("/api/health/ready")
    failed = {
        name: one["error"] for name, one in answer.json()["dependencies"].items() if not one["ok"]
    }
    return answer.status_code, failed


def test_readiness_fails_while_the_disk_is_full_and_comes_back_with_room(
    system: RunningSystem, http: httpx.Client
) -> None:
    assert readiness(http) == (200, {})
    ballast = fill(system.data_dir / "clickhouse")
    until(lambda: readiness(http)[0] == 503, what="readiness does not fail on a full disk")
    assert set(readiness(http)[1]) == {"clickhouse"}, "nothing waits to be stored yet"
    assert "no row can be stored" in readiness(http)[1]["clickhouse"]
    body = [{"bundle_id": f"b{n}", "slot": n} for n in range(EVENTS)]
    assert http.post("/api/events/bundle", json=body).json()["accepted"] == EVENTS
    until(lambda: set(readiness(http)[1]) == {"clickhouse", "sink"}, what="the sink is not named")
    assert "tried again" in readiness(http)[1]["sink"]
    ballast.unlink()
    until(lambda: readiness(http) == (200, {}), what="readiness does not come back")
    until(
        lambda: len(http.get("/api/events/bundle?limit=1000").json()["items"]) == EVENTS,
        what="what waited is not stored",
    )
    metrics = http.get("/metrics").text
    assert 'mev_sink_dead_letters_total{topic="mev.bundle.v1"} 0.0' in metrics
