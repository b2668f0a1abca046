"""A system for commands to talk to."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.api import ScriptedApi


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedApi]:
    """Run an API that commands find; their clock advances only in pauses, without real waiting."""
    monkeypatch.setenv("MEV_DATA_DIR", str(tmp_path / "data"))
    for name in ("KAFKA_BROKERS", "CLICKHOUSE_HOST", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    made = ScriptedApi(tmp_path / "data")
    passed, ours = [0.0], threading.get_ident()
    real_sleep, real_monotonic = time.sleep, time.monotonic

    def sleep(seconds: float) -> None:
        if threading.get_ident() != ours:  # other threads of this process keep their time
            real_sleep(seconds)
            return
        made.pauses.append(seconds)
        made.on_pause()
        passed[0] += seconds

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(
        "time.monotonic", lambda: passed[0] if threading.get_ident() == ours else real_monotonic()
    )
    yield made
    made.close()
