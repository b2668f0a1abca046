"""Tests that kill the embedded broker under a running fleet: nothing is lost or duplicated."""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mev.bus.embedded import KAFKA_FOLDER, embedded_brokers
from mev.client import Stream
from mev.crypto.envelope import payload_type
from mev.store.folder import DataFolder
from mev.wire.pb.control_pb2 import Command
from mev.wire.pb.envelope_pb2 import Envelope
from mev.wire.topics import CONTROL
from tests.integration.brokers import read_all, values
from tests.services.fleet import Fleet
from tests.services.processes import processes_with
from tests.services.system import RunningSystem
from tests.services.waits import until_async, until_document

pytestmark = pytest.mark.slow
AGENTS = ("a1", "a2", "a3")
LEVELS = {"a1": "ACTIVE", "a2": "ACTIVE", "a3": "HALTED"}
KILLS = 2


@pytest.fixture
def system(tmp_path: Path) -> Iterator[RunningSystem]:
    """Give a running system whose leases outlast the restart of a child on a busy machine."""
    running = RunningSystem(
        tmp_path / "data",
        LEASE_TTL_S="60",
        LEASE_RENEW_S="1",
        REPORT_INTERVAL_S="0.3",
        PUBLISH_TIMEOUT_S="30",
    )
    running.start()
    yield running
    running.kill()


def order(http: httpx.Client, path: str, **body: Any) -> str:
    answer = http.post(f"/api/control/{path}", json=body)
    assert answer.status_code == 202, answer.text
    command_id: str = answer.json()["id"]
    return command_id


def levels(page: dict[str, Any]) -> dict[str, str]:
    return {
        agent["agent_id"]: agent["level"]
        for agent in page["items"]
        if agent["agent_id"] in AGENTS and agent["online"]
    }


@pytest.fixture
def fleet(system: RunningSystem) -> Iterator[Fleet]:
    """Give three agents, two of which may trade; the third was stopped."""
    agents = Fleet(system)
    for agent_id in AGENTS:
        agents.start(agent_id)
    with system.client() as http:
        until_document(http, "/api/control/agents", lambda page: len(levels(page)) == len(AGENTS))
        order(http, "kill-switch", scope="all", level="ACTIVE", reason="start")
        order(http, "kill-switch", scope="agent", target="a3", level="HALTED", reason="looks wrong")
        until_document(http, "/api/control/agents", lambda page: levels(page) == LEVELS)
    yield agents
    agents.close()


@contextlib.asynccontextmanager
async def read_everything(
    system: RunningSystem, offsets: list[tuple[int, int]]
) -> AsyncIterator[None]:
    """Read ticks meanwhile, and note partition and offset of each."""

    async def read() -> None:
        async with (
            Stream(system.url, api_key=system.key) as stream,
            stream.subscribe(["tick"], on_slow="lossless") as ticks,
        ):
            await ticks.started()
            ready.set()
            async for batch in ticks:
                assert (batch.lost, batch.reset) == (0, False)
                offsets.extend((record.partition, record.offset) for record in batch.records())

    ready = asyncio.Event()
    task = asyncio.create_task(read())
    try:
        await ready.wait()
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def kill_broker_and_order(system: RunningSystem, restarts: int) -> list[str]:
    """Kill the broker, send events and commands meanwhile, and return the command ids."""
    (pid,) = processes_with(f"{system.data_dir.resolve()}/{KAFKA_FOLDER}")
    with system.client() as http:
        os.kill(pid, signal.SIGKILL)
        ids = [
            order(
                http,
                "command",
                module="arbitrage",
                action="set_min_profit",
                params={"lamports": 1000 + restarts},
            )
        ]
        ids.append(
            order(
                http,
                "kill-switch",
                scope="agent",
                target="a3",
                level="HALTED",
                reason="still wrong",
            )
        )
        ticks = [
            {"market_id": f"m{number}", "timestamp_ns": number, "simulated": True}
            for number in range(1, 101)
        ]
        assert http.post("/api/events/tick", json=ticks).json()["accepted"] == len(ticks)
        until_document(
            http,
            f"/api/control/commands/{ids[0]}",
            lambda command: command["states"]["SYNCED"] == len(AGENTS),
        )
        until_document(
            http,
            f"/api/control/commands/{ids[1]}",
            lambda command: command["states"]["SYNCED"] == 1,
        )
        until_document(
            http,
            "/api/health/ready",
            lambda page: (
                page["dependencies"]["kafka"].get("restarts") == restarts and page["ready"]
            ),
        )
        until_document(http, "/api/control/agents", lambda page: levels(page) == LEVELS)
    return ids


async def test_killed_broker_costs_no_order_no_event_and_raises_no_level(
    system: RunningSystem, fleet: Fleet
) -> None:
    offsets: list[tuple[int, int]] = []
    ids = []
    async with read_everything(system, offsets):
        for number in range(1, KILLS + 1):
            ids += await asyncio.to_thread(kill_broker_and_order, system, number)
        await until_async(lambda: len(offsets), lambda count: count >= 100 * KILLS)
    assert max(Counter(offsets).values()) == 1
    for partition in {at for at, _ in offsets}:
        found = [offset for at, offset in offsets if at == partition]
        assert found == list(range(len(found)))

    servers = DataFolder(system.data_dir).read_runtime().kafka
    envelopes = [
        Envelope.FromString(value)
        for value in values(
            read_all(embedded_brokers(system.data_dir / KAFKA_FOLDER, servers), CONTROL)
        )
    ]
    written = Counter(
        Command.FromString(one.payload).id
        for one in envelopes
        if one.payload_type == payload_type(Command)
    )
    assert {command_id: written[command_id] for command_id in ids} == dict.fromkeys(ids, 1)
    for agent_id, log in fleet.logs().items():
        after_start = log.rpartition(f"level {LEVELS[agent_id]}")[2]
        assert "level " not in after_start, log
