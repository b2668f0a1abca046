"""Readiness: all dependencies are checked concurrently, at most once a second."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client import Gauge

from mev.core.confine import NOT_CONFINED
from mev.core.errors import MevError
from mev.core.supervisor import Supervisor

Check = Callable[[], Awaitable[object]]
_FRESH_S = 1.0
UP = Gauge("mev_dependency_up", "1 if the dependency answers, else 0.", ["dependency", "required"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """Result of one dependency's check; the system is only degraded without an optional one."""

    ok: bool
    required: bool
    embedded: bool
    latency_ms: float
    error: str | None = None
    restarts: int | None = None
    """Restarts of the child process; None if the dependency is not one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStatus:
    """A process of a system that has several, and why it is not well."""

    pid: int | None
    restarts: int
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Status of every dependency; ready when all required dependencies are ready.

    `degraded` names the optional dependencies that are not ready, and the processes that are not
    well. `confinement` describes the isolation of training processes. `processes` is empty if the
    system is one process.
    """

    ready: bool
    degraded: list[str]
    dependencies: dict[str, Dependency]
    confinement: str
    processes: Mapping[str, ProcessStatus] = field(default_factory=dict)


class Health:
    """Runs `checks`, each within `timeout_s`, and caches the results for a second.

    `embedded` lists the embedded dependencies, `optional` those not required; `children` are the
    supervisors of child processes, None for what is not one.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        embedded: tuple[str, ...],
        timeout_s: float,
        optional: tuple[str, ...] = (),
        children: Mapping[str, Supervisor | None] | None = None,
        confinement: str = str(NOT_CONFINED),
    ) -> None:
        self._checks = checks
        self._embedded = embedded
        self._optional = optional
        self._timeout_s = timeout_s
        self._children = children or {}
        self._confinement = confinement
        self._last: Readiness | None = None
        self._asked_at = 0.0
        self._lock = asyncio.Lock()

    async def readiness(self) -> Readiness:
        """Return the check results, at most a second old."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._asked_at > _FRESH_S:
                answers = await asyncio.gather(
                    *(self._ask(name, check) for name, check in self._checks.items())
                )
                dependencies = dict(zip(self._checks, answers, strict=True))
                self._last = _readiness(dependencies, self._confinement)
                for name, found in dependencies.items():
                    UP.labels(name, str(found.required).lower()).set(found.ok)
                self._asked_at = time.monotonic()
            return self._last

    async def _ask(self, name: str, check: Check) -> Dependency:
        started = time.perf_counter()
        error = None
        try:
            async with asyncio.timeout(self._timeout_s):
                await check()
        except MevError as failure:
            error = failure.detail
        except TimeoutError:
            error = f"no answer within {self._timeout_s:g} s"
        latency_ms = round((time.perf_counter() - started) * 1000, 3)
        required = name not in self._optional
        child = self._children.get(name)
        if child is not None and child.problem is not None:
            error = child.problem
        return Dependency(
            ok=error is None,
            required=required,
            embedded=name in self._embedded,
            latency_ms=latency_ms,
            error=error,
            restarts=child.restarts if child is not None else None,
        )


def _readiness(dependencies: dict[str, Dependency], confinement: str) -> Readiness:
    failed = [name for name, dependency in dependencies.items() if not dependency.ok]
    degraded = [name for name in failed if not dependencies[name].required]
    return Readiness(
        ready=failed == degraded,
        degraded=degraded,
        dependencies=dependencies,
        confinement=confinement,
    )
