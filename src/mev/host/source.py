"""Sources of the health routes' answers: this process, or several as one system."""

from dataclasses import dataclass
from typing import Protocol

from prometheus_client import REGISTRY, generate_latest

from mev.host.health import Health, Readiness
from mev.host.machine import Machine, MachineMonitor
from mev.host.performance import SAMPLES, Performance, PerformanceMonitor
from mev.host.process import ProcessLoad, ProcessMonitor

ONLY = "mev"
"""Name of the process of a system that has only one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemLoad:
    """Load of the machine, and of each process of the system by its name."""

    machine: Machine
    processes: dict[str, ProcessLoad]


class HealthSource(Protocol):
    """Answers of the health routes."""

    async def readiness(self) -> Readiness:
        """Return the status of every dependency."""

    async def metrics(self) -> bytes:
        """Return all metrics in the Prometheus text format."""

    async def system(self) -> SystemLoad:
        """Return the load of the machine and the processes."""

    async def performance(self) -> Performance:
        """Return latencies and rates of the latest minute."""


class OwnHealth:
    """Answers for a system that is this process."""

    def __init__(self, health: Health, machine: MachineMonitor, process: ProcessMonitor) -> None:
        self._health = health
        self._machine = machine
        self._process = process
        self._performance = PerformanceMonitor()

    async def readiness(self) -> Readiness:
        """Return the status of every dependency."""
        return await self._health.readiness()

    async def metrics(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return await own_metrics()

    async def system(self) -> SystemLoad:
        """Return the load of the machine and this process."""
        return SystemLoad(
            machine=await self._machine.report(), processes={ONLY: await self._process.report()}
        )

    async def performance(self) -> Performance:
        """Return latencies and rates of the latest minute."""
        return self._performance.report(REGISTRY.restricted_registry(SAMPLES).collect())


async def own_metrics() -> bytes:
    """Return the metrics of this process in the Prometheus text format."""
    return generate_latest()
