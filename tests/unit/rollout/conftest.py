"""A control plane with deployments, for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.rollout.plant import Clock, Plant


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    made = Plant(tmp_path, Clock())
    await made.start()
    yield made
    await made.control.close()
