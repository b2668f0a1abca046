"""Readiness: each dependency is asked at the same time, and at most once a second however often health is."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from mev.core.errors import MevError

Check = Callable[[], Awaitable[object]]
_FRESH_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """One dependency's answer; without one that is not `required` the rest goes on, less well."""

    ok: bool
    required: bool
    embedded: bool
    latency_ms: float
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Every dependency's answer; ready when all that are required are, `degraded` names the others that are not."""

    ready: bool
    degraded: list[str]
    dependencies: dict[str, Dependency]


class Health:
    """Asks `checks`, each within `timeout_s`; `embedded` names those inside the process, `optional` those that are not required."""

    def __init__(self, checks: Mapping[str, Check], *, embedded: tuple[str, ...], timeout_s: float, optional: tuple[str, ...] = ()) -> None:
        self._checks = checks
        self._embedded = embedded
        self._optional = optional
        self._timeout_s = timeout_s
        self._last: Readiness | None = None
        self._asked_at = 0.0
        self._lock = asyncio.Lock()

    async def readiness(self) -> Readiness:
        """Return the answers, at most a second old."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._asked_at > _FRESH_S:
                answers = await asyncio.gather(*(self._ask(name, check) for name, check in self._checks.items()))
                dependencies = dict(zip(self._checks, answers, strict=True))
                self._last = _readiness(dependencies)
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
        return Dependency(ok=error is None, required=required, embedded=name in self._embedded, latency_ms=latency_ms, error=error)


def _readiness(dependencies: dict[str, Dependency]) -> Readiness:
    failed = [name for name, dependency in dependencies.items() if not dependency.ok]
    degraded = [name for name in failed if not dependencies[name].required]
    return Readiness(ready=failed == degraded, degraded=degraded, dependencies=dependencies)
