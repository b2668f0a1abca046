import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mev.realtime.webtransport.certificates import CertificateSource
from tests.integration.webtransport.service import Service


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every test on both loops: the system runs on either."""
    del config, item
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    services: list[Service] = []

    async def starter(
        limits: dict[str, Any] | None = None,
        source: CertificateSource | None = None,
        host: str = "127.0.0.1",
        **bounds: Any,
    ) -> Service:
        service = Service(tmp_path / "webtransport", limits or {}, bounds, source)
        services.append(service)
        await service.started(host)
        return service

    yield starter
    for service in services:
        await service.stop()


@pytest.fixture
async def service(start: Callable[..., Any]) -> Service:
    started: Service = await start()
    return started
