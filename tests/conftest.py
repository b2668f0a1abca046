"""Fixtures for every test: real servers, the shared sample of on-chain data, and a guard against processes left behind."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import clickhouse, kafka, processes, redis, require
from tests.services.kafka import jars
from tests.services.service import Service

# Before XGBoost is imported: tests run beside one another, and its threads must not spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data" / "solana"
RUNNING = pytest.StashKey[list[Service]]()


def pytest_configure(config: pytest.Config) -> None:
    """Start with no server running."""
    config.stash[RUNNING] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the marker of the server that it asks for, and time for a first download of the broker."""
    downloads = not jars.cached()
    for item in items:
        names: list[str] = getattr(item, "fixturenames", [])
        for name in {"real_kafka", "real_redis", "clickhouse_http"}.intersection(names):
            item.add_marker(name)
        if downloads and "real_kafka" in names:
            item.add_marker(pytest.mark.timeout(jars.RESOLVE_TIMEOUT_S + 60))


@pytest.fixture(scope="session")
def real_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka.RealKafka]:
    """Run an Apache Kafka broker for the session; a test that stops or kills it may leave it so."""
    with kafka.real_kafka(tmp_path_factory.mktemp("kafka")) as server:
        request.config.stash[RUNNING].append(server)
        yield server
        request.config.stash[RUNNING].remove(server)
    shutil.rmtree(server.folder / "data", ignore_errors=True)


@pytest.fixture(scope="session")
def real_redis(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.RealRedis]:
    """Run a Redis server for the session; a test that stops or kills it may leave it so."""
    with redis.real_redis(tmp_path_factory.mktemp("redis")) as server:
        request.config.stash[RUNNING].append(server)
        yield server
        request.config.stash[RUNNING].remove(server)


@pytest.fixture(scope="session")
def clickhouse_http(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[clickhouse.ClickHouseHttp]:
    """Run ClickHouse's engine behind HTTP for the session; a test that stops or kills it may leave it so.

    Real are the engine (chDB: parser, types, formats, tables on disk, deduplication, error codes and texts), the client, and the HTTP
    between them (bytes, compression, keep-alive, time-outs, connections that break). Not real is the server's own HTTP handler: how it
    authenticates, maps errors to statuses, streams, reports progress and limits what it takes is imitated, as far as the client notices.
    """
    with clickhouse.clickhouse_http(tmp_path_factory.mktemp("clickhouse")) as server:
        request.config.stash[RUNNING].append(server)
        yield server
        request.config.stash[RUNNING].remove(server)
    shutil.rmtree(server.folder / "data", ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder of real Solana blocks and transactions that lies beside the repository."""
    if not SHARED_DATA.is_dir():
        require(f"there is no {os.path.relpath(SHARED_DATA)}")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _no_processes_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves child processes behind, and hand the servers on running."""
    before = processes.children()
    yield
    servers = request.config.stash[RUNNING]
    for server in servers:
        server.start()
    known = before | {server.pid for server in servers if server.pid is not None}
    if found := processes.left_over(known):
        commands = [processes.command_line(pid) for pid in sorted(found)]
        processes.kill(found)
        pytest.fail(f"the test left child processes behind: {commands}", pytrace=False)
