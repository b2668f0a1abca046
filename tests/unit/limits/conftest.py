from collections.abc import AsyncIterator, Iterator

import pytest

from mev.store.redis import Redis
from mev.store.valkey import EmbeddedValkey


@pytest.fixture(scope="package")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"), timeout_s=10)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    client = Redis(valkey.url, timeout_s=5)
    await client._client.flushall()
    yield client
    await client.close()
