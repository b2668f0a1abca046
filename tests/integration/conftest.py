"""A running system that the tests of this folder share."""

from collections.abc import Iterator

import httpx
import pytest

from tests.services.system import RunningSystem


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Run everything embedded, once for a module."""
    running = RunningSystem(tmp_path_factory.mktemp("mev") / "data", IP_RATE_BURST="1000")
    running.start()
    yield running
    assert running.stop() == 0, running.log.read_text()


@pytest.fixture
def http(system: RunningSystem) -> Iterator[httpx.Client]:
    """Give a client of the running system that carries its key."""
    with system.client() as client:
        yield client
