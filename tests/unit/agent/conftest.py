"""Fixtures of the agent's unit tests."""

from pathlib import Path

import pytest

from tests.unit.agent.plane import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Give a governor that has just enrolled."""
    return Bench(tmp_path)
