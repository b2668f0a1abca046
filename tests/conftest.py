"""Shared fixtures: real servers, on-chain sample data, and a check for leftover processes."""

import functools
import os
import shutil
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from httpx._transports import default as transport
from hypothesis import settings

from tests.services import clickhouse, kafka, processes, redis, require, s3, system
from tests.services.service import Service

# Set before XGBoost is imported: tests run in parallel, and idle threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Every client would read all certificates of authorities again: 0.1 s, also in each poll of a wait.
transport.create_ssl_context = functools.cache(  # type: ignore[attr-defined]
    transport.create_ssl_context  # type: ignore[attr-defined]
)
settings.register_profile("few", max_examples=40, deadline=None)
settings.register_profile("many", max_examples=1000, deadline=None)  # for `make slow`
settings.load_profile("few")
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data" / "solana"
RUNNING = pytest.StashKey[list[Service]]()


def pytest_configure(config: pytest.Config) -> None:
    """Start with no server running."""
    config.stash[RUNNING] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the server it uses."""
    for item in items:
        names: list[str] = getattr(item, "fixturenames", [])
        for name in {"real_kafka", "real_redis", "real_s3", "clickhouse_http"}.intersection(names):
            item.add_marker(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test what the newest whole system logged last, if the test uses one."""
    report = yield
    names = vars(sys.modules[item.function.__module__]) if isinstance(item, pytest.Function) else {}
    newest = system.RunningSystem.newest
    if report.failed and newest is not None and "RunningSystem" in names:
        report.sections.append(("last lines of the system's logs", newest.last_lines()))
    return report


@pytest.fixture(scope="session")
def real_kafka(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kafka.RealKafka]:
    """Run an Apache Kafka broker for the session; a test that stops or kills it may leave it so."""
    with kafka.real_kafka(tmp_path_factory.mktemp("kafka")) as server:
        request.config.stash[RUNNING].append(server)
        yield server
        request.config.stash[RUNNING].remove(server)
    shutil.rmtree(server.folder / "data", ignore_errors=True)


@pytest.fixture(scope="session")
def real_redis(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[redis.RealRedis]:
    """Run a Redis server for the session; a test that stops or kills it may leave it so."""
    with redis.real_redis(tmp_path_factory.mktemp("redis")) as server:
        request.config.stash[RUNNING].append(server)
        yield server
        request.config.stash[RUNNING].remove(server)


@pytest.fixture(scope="session")
def real_s3(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[s3.RealS3]:
    """Run an S3 server for the session; a test that stops or kills it may leave it so."""
    with s3.real_s3(tmp_path_factory.mktemp("s3")) as server:
        request.config.stash[RUNNING].append(server)
        yield server
        request.config.stash[RUNNING].remove(server)
    shutil.rmtree(server.data, ignore_errors=True)


@pytest.fixture(scope="session")
def clickhouse_http(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[clickhouse.ClickHouseHttp]:
    """Run the ClickHouse engine behind HTTP for the session; a test may leave it stopped.

    Real are the engine (chDB: parser, types, formats, tables on disk, deduplication, error codes
    and texts), the client, and the HTTP between them (bytes, compression, keep-alive, timeouts,
    broken connections). The server's own HTTP handler is imitated as far as the client notices:
    authentication, status codes, streaming, progress and limits.
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
