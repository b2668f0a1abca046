"""A control plane with deployments, for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.deploy.plant import Clock, Plant


@pytest.fixture
async def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plant]:
    clock = Clock()
    for module in ("service", "enrolments"):
        monkeypatch.setattr(f"mev.control.{module}.now_ns", clock)
    made = Plant(tmp_path, clock)
    await made.start()
    yield made
    await made.control.close()
