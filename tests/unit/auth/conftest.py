import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mev.auth.model import Backoff
from mev.auth.passwords import Passwords
from mev.auth.service import Accounts, Lifetimes
from mev.auth.store import AccountStore
from mev.auth.tokens import Keyring
from mev.store.redis import Redis
from mev.store.valkey import EmbeddedValkey
from tests.unit.auth.hashing import SECRET, CountingHasher


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


@pytest.fixture
async def gone(tmp_path: Path) -> AsyncIterator[Redis]:
    """Give a Redis that does not answer."""
    client = Redis(f"unix://{tmp_path}/none", timeout_s=1)
    yield client
    await client.close()


@pytest.fixture
def store(redis: Redis) -> AccountStore:
    return AccountStore(redis)


@pytest.fixture
def keyring() -> Keyring:
    return Keyring([SECRET])


@pytest.fixture
def hasher() -> CountingHasher:
    return CountingHasher()


@pytest.fixture
def passwords(hasher: CountingHasher) -> Iterator[Passwords]:
    made = Passwords(hasher)
    yield made
    made.close()


@pytest.fixture
def facts() -> list[tuple[str, str, str, str]]:
    """Give what was told to the audit trail."""
    return []


@pytest.fixture
def accounts(
    store: AccountStore,
    keyring: Keyring,
    passwords: Passwords,
    facts: list[tuple[str, str, str, str]],
) -> Accounts:
    async def audit(
        actor: str,
        action: str,
        object: str,  # noqa: A002
        outcome: str,
        details: object,
    ) -> None:
        del details
        facts.append((actor, action, object, outcome))

    backoff = Backoff(free=3, base_s=60, most_s=200)
    return Accounts(
        store, keyring, passwords, lifetimes=Lifetimes(access_s=60), backoff=backoff, audit=audit
    )


@pytest.fixture
def now() -> float:
    return time.time()
