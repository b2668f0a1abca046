"""Load of the machine and of this process."""

import gc
import os
import time
from pathlib import Path

import psutil
from prometheus_client import REGISTRY

from mev.host.machine import MachineMonitor
from mev.host.process import measured_process
from tests.services.waits import until_async


async def test_machine_shows_each_core_memory_and_the_disk_of_the_data_folder(
    tmp_path: Path,
) -> None:
    found = await MachineMonitor(tmp_path).report()
    assert len(found.cpu.cores) == psutil.cpu_count()
    assert all(0 <= core.busy <= 1 for core in found.cpu.cores)
    assert 0 < found.memory.available_bytes <= found.memory.total_bytes
    status = os.statvfs(tmp_path)
    assert found.disk.data_total_bytes == status.f_blocks * status.f_frsize
    assert "lo" not in found.network


async def test_blocked_event_loop_and_collections_are_measured_and_exported() -> None:
    async with measured_process(period_s=0.05) as monitor:
        seen = await until_async(lambda: _observed("mev_event_loop_lag_seconds_count"))
        time.sleep(0.3)  # noqa: ASYNC251 - the event loop is to be late
        await until_async(lambda: _observed("mev_event_loop_lag_seconds_count") > seen)
        gc.collect()
        found = await monitor.report()
        assert _observed("mev_gc_pause_seconds_count", generation="2") >= 1
    assert found.pid == os.getpid()
    assert found.event_loop_lag.p99_ms is not None
    assert found.event_loop_lag.p99_ms > 100
    assert found.gc_pauses["2"].count >= 1
    assert _observed("mev_event_loop_lag_seconds_count") == 0


async def test_open_files_are_counted(tmp_path: Path) -> None:
    async with measured_process() as monitor:
        before = (await monitor.report()).open_files.count
        with (tmp_path / "file").open("w"):
            files = (await monitor.report()).open_files
        assert files.count == before + 1
        assert files.limit >= files.count


async def test_processor_time_is_that_of_this_process() -> None:
    async with measured_process() as monitor:
        spent = time.process_time()
        while time.process_time() - spent < 0.05:
            pass
        assert (await monitor.report()).cores > 0


def _observed(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0
