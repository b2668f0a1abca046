"""Checks of memory, limits of the process, kernel parameters, and entropy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mev.doctor.files import children, parse_choice, read, read_int, to_int
from mev.doctor.finding import Finding, State, judged, not_applicable

_LEAST_PROCESSES = 4096
_FULL = 0.8
_LEAST_ENTROPY_BITS = 256


def check_huge_pages(root: Path) -> Finding:
    """Check that transparent huge pages are used only where a program requests them."""
    name = "Huge pages"
    mode = parse_choice(read(root / "sys/kernel/mm/transparent_hugepage/enabled") or "")
    if mode is None:
        return not_applicable(name, "the kernel has no transparent huge pages")
    return judged(
        name,
        good=mode in {"madvise", "never"},
        wanted="transparent: madvise or never",
        found=f"transparent: {mode}",
        cost="Redis and Valkey pause when they save: each changed page copies 2 MiB",
        remedy="echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit of a process; None for no limit."""

    soft: int | None
    hard: int | None


def parse_limits(text: str) -> dict[str, Limit]:
    """Return the limits in the text of `/proc/PID/limits`; malformed lines are ignored."""
    limits: dict[str, Limit] = {}
    for line in text.splitlines():
        name, cells = line[:26].strip(), line[26:].split()
        if not name.startswith("Max ") or len(cells) < 2:
            continue
        values = [None if cell == "unlimited" else to_int(cell) for cell in cells[:2]]
        if all(
            value is not None or cell == "unlimited"
            for value, cell in zip(values, cells, strict=False)
        ):
            limits[name] = Limit(soft=values[0], hard=values[1])
    return limits


def check_open_files(root: Path, pid: str, *, wanted: int, running: bool) -> Finding:
    """Check the limit of open files of the process `pid`.

    `mev up` raises its soft limit up to the hard one, so the hard one counts until it runs.
    """
    name = "Open files"
    limits = parse_limits(read(root / "proc" / pid / "limits") or "")
    if (limit := limits.get("Max open files")) is None:
        return not_applicable(name, "the kernel does not show the limits of the process")
    effective = limit.soft if running else limit.hard
    used = len(children(root / "proc" / pid / "fd", "*"))
    found = "no limit" if effective is None else f"{effective:,}"
    if running and used:
        found += f", {used:,} open"
    enough = effective is None or (
        effective >= wanted and not (running and used > _FULL * effective)
    )
    return judged(
        name,
        good=enough,
        wanted=f"{wanted:,} or more (HTTP_MAX_CONNECTIONS, WS_MAX_CONNECTIONS and others)",
        found=found,
        cost="the limits of HTTP and WebSocket connections are lowered until they fit",
        remedy="LimitNOFILE=65536 in the unit, or `ulimit -Hn 65536` as root before `mev up`",
        otherwise=State.PROBLEM
        if running and effective and used > _FULL * effective
        else State.WARNING,
    )


def check_processes(root: Path, pid: str) -> Finding:
    """Check the limit of processes and threads of the process `pid`."""
    name = "Processes"
    limits = parse_limits(read(root / "proc" / pid / "limits") or "")
    if (limit := limits.get("Max processes")) is None:
        return not_applicable(name, "the kernel does not show the limits of the process")
    return judged(
        name,
        good=limit.soft is None or limit.soft >= _LEAST_PROCESSES,
        wanted=f"{_LEAST_PROCESSES:,} or more",
        found="no limit" if limit.soft is None else f"{limit.soft:,}",
        cost="threads of Kafka clients and jobs cannot be started",
        remedy=f"TasksMax={_LEAST_PROCESSES} and LimitNPROC={_LEAST_PROCESSES} in the unit",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameter:
    """A kernel parameter, the bound that it must hold, and the cost of breaking it."""

    name: str
    bound: int
    cost: str
    holds: Callable[[int, int], bool] = int.__ge__
    sign: str = "or more"


PARAMETERS = (
    _Parameter(
        name="net.core.somaxconn",
        bound=2048,
        cost="connections of a burst wait a second or more: the accept queue is shorter"
        " than the 2048 that the API requests",
    ),
    _Parameter(
        name="net.ipv4.tcp_max_syn_backlog",
        bound=1024,
        cost="connections of a burst are dropped before they are accepted, and sent again",
    ),
    _Parameter(
        name="net.core.rmem_max",
        bound=4 << 20,
        cost="datagrams of WebTransport are lost in bursts: a socket cannot have a larger buffer",
    ),
    _Parameter(
        name="net.core.wmem_max",
        bound=4 << 20,
        cost="WebTransport sends in smaller bursts: a socket cannot have a larger buffer",
    ),
    _Parameter(
        name="net.core.netdev_max_backlog",
        bound=1000,
        cost="packets of a burst are dropped before the network stack reads them",
    ),
    _Parameter(
        name="net.ipv4.tcp_slow_start_after_idle",
        bound=0,
        cost="after a pause, a stream needs several round trips to reach its rate again",
        holds=int.__eq__,
        sign="",
    ),
    _Parameter(
        name="vm.swappiness",
        bound=10,
        cost="memory of the process is swapped out in favour of file caches",
        holds=int.__le__,
        sign="or less",
    ),
    _Parameter(
        name="vm.overcommit_memory",
        bound=1,
        cost="Redis and Valkey may be unable to save while memory is short",
        holds=int.__eq__,
        sign="",
    ),
    _Parameter(
        name="vm.max_map_count",
        bound=65_530,
        cost="ClickHouse and the Kafka broker run out of memory mappings",
    ),
)


def check_parameters(root: Path) -> list[Finding]:
    """Check the kernel parameters (sysctl) that the system depends on."""
    return [_check_parameter(root, parameter) for parameter in PARAMETERS]


def _check_parameter(root: Path, parameter: _Parameter) -> Finding:
    if parameter.name == "vm.swappiness" and not parse_swaps(read(root / "proc/swaps") or ""):
        return not_applicable(parameter.name, "there is no swap")
    value = read_int(root / "proc/sys" / parameter.name.replace(".", "/"))
    if value is None:
        return not_applicable(parameter.name, "the kernel does not show it here")
    return judged(
        parameter.name,
        good=parameter.holds(value, parameter.bound),
        wanted=f"{parameter.bound} {parameter.sign}".strip(),
        found=str(value),
        cost=parameter.cost,
        remedy=f"sysctl -w {parameter.name}={parameter.bound}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapSpace:
    """A swap area."""

    size_kib: int
    used_kib: int


def parse_swaps(text: str) -> list[SwapSpace]:
    """Return the areas in the text of `/proc/swaps`; malformed lines are ignored."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return [
        SwapSpace(size_kib=size, used_kib=used)
        for row in rows
        if len(row) >= 4
        and (size := to_int(row[2])) is not None
        and (used := to_int(row[3])) is not None
    ]


def check_swap(root: Path) -> Finding:
    """Check that no swap is used."""
    name = "Swap"
    if not (areas := parse_swaps(read(root / "proc/swaps") or "")):
        return not_applicable(name, "none")
    used_mib, size_mib = (
        sum(values) >> 10 for values in zip(*((a.used_kib, a.size_kib) for a in areas), strict=True)
    )
    return judged(
        name,
        good=not used_mib,
        wanted="not used",
        found=f"{used_mib:,} MiB of {size_mib:,} MiB used",
        cost="an access to swapped memory waits for the disk",
        remedy="stop what needs the memory, or add some; then `swapoff -a && swapon -a`",
    )


def check_entropy(root: Path) -> Finding:
    """Check that the kernel's random numbers are seeded."""
    name = "Entropy"
    bits = read_int(root / "proc/sys/kernel/random/entropy_avail")
    if bits is None:
        return not_applicable(name, "the kernel does not show it")
    return judged(
        name,
        good=bits >= _LEAST_ENTROPY_BITS,
        wanted=f"{_LEAST_ENTROPY_BITS} bits",
        found=f"{bits} bits",
        cost="creating a key or a TLS connection may wait",
        remedy="give the virtual machine a virtio-rng device, or run `rngd`",
    )
