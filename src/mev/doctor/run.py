"""The list of all checks, each run within a time limit."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mev.doctor import clock, kernel, network, processor, services, software, storage
from mev.doctor.finding import Finding, State
from mev.settings import Settings

LIMIT_S = 4.0
_OWN_FILES = 512
"""Descriptors that the API process needs besides those of connections."""
Check = Callable[[], Finding | list[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Findings about one part of the machine."""

    name: str
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Subject of the checks: the settings, their errors, and the running system, if any."""

    settings: Settings
    errors: str
    pid: int | None
    api: str | None
    root: Path = field(default=Path("/"))


def run_checks(target: Target, *, limit_s: float = LIMIT_S) -> list[Area]:
    """Return the findings of all checks by area, within `limit_s`.

    A check that takes longer, or fails, is a warning.
    """
    areas = _checks(target)
    done: dict[int, list[Finding]] = {}
    threads: list[tuple[str, int, threading.Thread]] = []

    def run(number: int, name: str, check: Check) -> None:
        done[number] = _result(name, check)

    for checks in areas.values():
        for name, check in checks.items():
            number = len(threads)
            # A daemon: one that waits for a name server must not keep the command from ending.
            thread = threading.Thread(target=run, args=(number, name, check), daemon=True)
            thread.start()
            threads.append((name, number, thread))
    ends = time.monotonic() + limit_s
    for _, _, thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    results = iter(
        done.get(number) or [_unchecked(name, f"no answer within {limit_s:g} s")]
        for name, number, _ in threads
    )
    return [
        Area(name=area, findings=[finding for _ in checks for finding in next(results)])
        for area, checks in areas.items()
    ]


def wanted_files(settings: Settings) -> int:
    """Return the limit of open files at which the API accepts all connections of the settings."""
    return settings.http_max_connections + settings.ws_max_connections + _OWN_FILES


def _result(name: str, check: Check) -> list[Finding]:
    try:
        found = check()
    except Exception as error:  # noqa: BLE001 - one failed check must not hide the others
        return [_unchecked(name, f"the check failed: {type(error).__name__}: {error}")]
    return found if isinstance(found, list) else [found]


def _unchecked(name: str, found: str) -> Finding:
    return Finding(
        name=name,
        state=State.WARNING,
        wanted="an answer",
        found=found,
        cost="unknown",
        remedy="check it by hand, and report this",
    )


def _checks(target: Target) -> dict[str, dict[str, Check]]:
    root, settings = target.root, target.settings
    pid = "self" if target.pid is None else str(target.pid)
    daemons, kernel_clock = clock.running_daemons(root), clock.read_kernel_clock()
    return {
        "System": {
            "Settings": partial(software.check_settings, target.errors),
            "Running system": partial(services.check_system, target.api),
            "Kafka": partial(services.check_kafka, settings),
            "ClickHouse": partial(services.check_clickhouse, settings),
            "Redis": partial(services.check_redis, settings),
            "Object store": partial(services.check_object_store, settings),
            "Certificates": partial(services.check_certificates, settings),
            "Native module": software.check_native,
            "Compilers": software.check_compilers,
        },
        "Disk": {
            "Disk latency": partial(storage.check_fsync, settings.mev_data_dir),
            "Disk space": partial(storage.check_space, settings.mev_data_dir),
        },
        "Limits of the running process" if target.pid else "Limits of a new process": {
            "Open files": partial(
                kernel.check_open_files,
                root,
                pid,
                wanted=wanted_files(settings),
                running=target.pid is not None,
            ),
            "Processes": partial(kernel.check_processes, root, pid),
            "CPU affinity": partial(processor.check_affinity, root, pid),
            "CPU quota": partial(processor.check_quota, root, pid),
            "NUMA": partial(processor.check_numa, root, pid),
        },
        "Processor and memory": {
            "CPU governor": partial(processor.check_governor, root),
            "Thermal throttling": partial(processor.check_heat, root),
            "AES instructions": partial(processor.check_aes, root),
            "Huge pages": partial(kernel.check_huge_pages, root),
            "Swap": partial(kernel.check_swap, root),
            "Entropy": partial(kernel.check_entropy, root),
        },
        "Kernel parameters": {"Kernel parameters": partial(kernel.check_parameters, root)},
        "Clock": {
            "Clock source": partial(clock.check_source, root),
            "Clock synchronisation": partial(
                clock.check_synchronisation,
                kernel_clock,
                daemons,
                several_machines=len(settings.embedded) < 3,
            ),
            "PTP": partial(clock.check_ptp, root, daemons),
            "UTC and TAI": partial(clock.check_tai, kernel_clock),
        },
        "Network": {"Network cards": partial(network.check_cards, root)},
    }
