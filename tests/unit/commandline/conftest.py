"""A system for commands to talk to."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.commandline.api import ScriptedApi


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedApi]:
    """Give an API that commands find; they do not pause, and say how long they would have."""
    monkeypatch.setenv("MEV_DATA_DIR", str(tmp_path / "data"))
    for name in ("KAFKA_BROKERS", "CLICKHOUSE_HOST", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    made = ScriptedApi(tmp_path / "data")
    passed = [0.0]
    real = time.monotonic

    def sleep(seconds: float) -> None:
        made.pauses.append(seconds)
        passed[0] += seconds

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: real() + passed[0])
    yield made
    made.close()
