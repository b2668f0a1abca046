import random
from collections.abc import AsyncIterator

import pytest

from mev.client import Stream
from tests.unit.client.server import KEY, Server, running


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running() as one:
        yield one


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect at once; what the server asks for still counts."""
    monkeypatch.setattr(random, "uniform", lambda low, _high: low)


@pytest.fixture
async def stream(server: Server) -> AsyncIterator[Stream]:
    async with Stream(server.url, api_key=KEY) as one:
        yield one
