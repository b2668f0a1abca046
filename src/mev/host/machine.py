"""Load of the machine: processors, memory, disks and network."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from mev.host.window import SampleWindow, rate

_WINDOW_S = 10.0
_LOOPBACK = "lo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Share of its time that a core spent, from 0 to 1; `busy` includes all but idle and I/O."""

    busy: float
    iowait: float
    steal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """Use of the processors by core, and the load averages of 1, 5 and 15 minutes."""

    cores: list[Core]
    load: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of the machine; `available_bytes` can be used without swapping."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """File system of the data folder, and the transfers of all disks."""

    data_total_bytes: int
    data_free_bytes: int
    read_bytes_per_s: float
    written_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Traffic of a network interface; errors and drops are those since the machine started."""

    received_bytes_per_s: float
    sent_bytes_per_s: float
    errors: int
    drops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Load of the machine; rates and shares are those of the latest `window_s`."""

    window_s: float
    cpu: Cpu
    memory: Memory
    disk: Disk
    network: dict[str, Interface]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Core:
    total: float
    busy: float
    iowait: float
    steal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traffic:
    received: int
    sent: int
    errors: int
    drops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counters:
    """Counters of the kernel, since the machine started."""

    cores: list[_Core]
    read: int
    written: int
    network: Mapping[str, _Traffic]


class MachineMonitor:
    """Measures the machine that `data_folder` is on, over about the latest ten seconds.

    Without earlier requests the window begins when the system started.
    """

    def __init__(self, data_folder: Path) -> None:
        self._folder = data_folder
        self._window = SampleWindow(_counters(), length_s=_WINDOW_S, least_s=1.0)

    async def report(self) -> Machine:
        """Return the current figures."""
        current, memory, (total, free) = await asyncio.to_thread(self._read)
        window_s, earlier = self._window.add(current)
        return Machine(
            window_s=round(window_s, 3),
            cpu=Cpu(
                cores=[
                    _core(now, before)
                    for now, before in zip(current.cores, earlier.cores, strict=False)
                ],
                load=os.getloadavg(),
            ),
            memory=memory,
            disk=Disk(
                data_total_bytes=total,
                data_free_bytes=free,
                read_bytes_per_s=rate(current.read - earlier.read, window_s),
                written_bytes_per_s=rate(current.written - earlier.written, window_s),
            ),
            network={
                name: _interface(now, earlier.network.get(name, now), window_s)
                for name, now in sorted(current.network.items())
            },
        )

    def _read(self) -> tuple[_Counters, Memory, tuple[int, int]]:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        disk = psutil.disk_usage(str(self._folder))
        found = Memory(
            total_bytes=memory.total,
            available_bytes=memory.available,
            swap_total_bytes=swap.total,
            swap_used_bytes=swap.used,
        )
        return _counters(), found, (disk.total, disk.free)


def _counters() -> _Counters:
    disks = psutil.disk_io_counters()  # None where the machine shows no disk
    return _Counters(
        cores=[
            _Core(
                # guest time is part of user time
                total=sum(each) - each.guest - each.guest_nice,
                busy=sum(each) - each.guest - each.guest_nice - each.idle - each.iowait,
                iowait=each.iowait,
                steal=each.steal,
            )
            for each in psutil.cpu_times(percpu=True)
        ],
        read=disks.read_bytes if disks else 0,
        written=disks.write_bytes if disks else 0,
        network={
            name: _Traffic(
                received=each.bytes_recv,
                sent=each.bytes_sent,
                errors=each.errin + each.errout,
                drops=each.dropin + each.dropout,
            )
            for name, each in psutil.net_io_counters(pernic=True).items()
            if name != _LOOPBACK
        },
    )


def _core(now: _Core, before: _Core) -> Core:
    elapsed = now.total - before.total

    def share(spent: float) -> float:
        return round(min(1.0, max(0.0, spent / elapsed)), 4) if elapsed > 0 else 0.0

    return Core(
        busy=share(now.busy - before.busy),
        iowait=share(now.iowait - before.iowait),
        steal=share(now.steal - before.steal),
    )


def _interface(now: _Traffic, before: _Traffic, window_s: float) -> Interface:
    return Interface(
        received_bytes_per_s=rate(now.received - before.received, window_s),
        sent_bytes_per_s=rate(now.sent - before.sent, window_s),
        errors=now.errors,
        drops=now.drops,
    )
