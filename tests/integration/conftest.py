"""A running system that the tests of this folder share."""

from collections.abc import Iterator

import httpx
import pytest

from tests.services.system import RunningSystem, running_system


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the runs on asyncio's own loop to `make slow`: the system runs on uvloop."""
    for item in items:
        if "[asyncio" in item.name:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Return the settings of the system; a module overrides this fixture for its own."""
    return {}


@pytest.fixture(scope="module")
def system(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str]
) -> Iterator[RunningSystem]:
    """Run everything embedded, once for a module."""
    folder = tmp_path_factory.mktemp("mev") / "data"
    with running_system(folder, IP_RATE_BURST="1000", **settings) as running:
        yield running


@pytest.fixture
def http(system: RunningSystem) -> Iterator[httpx.Client]:
    """Give a client of the running system that carries its key."""
    with system.client() as client:
        yield client
