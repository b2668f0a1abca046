import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvloop

from mev.realtime.access import PrincipalQuota
from mev.realtime.limits import HubLimits
from tests.integration.realtime.service import Service


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every test on both loops: they differ in when they pause a writer and how they flush."""
    del config, item
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    services: list[Service] = []

    async def starter(
        quota: PrincipalQuota | None = None, *, deflate: bool = False, **limits: float
    ) -> Service:
        values: Any = {"batch_window_ms": 2, "tick_s": 0.01, **limits}
        bounds = HubLimits(**values)
        service = Service(bounds, quota, deflate=deflate)
        services.append(service)
        await service.started()
        return service

    yield starter
    for service in services:
        await service.stop()


@pytest.fixture
async def service(start: Callable[..., Any]) -> Service:
    started: Service = await start()
    return started
