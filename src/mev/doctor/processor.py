"""Checks of processors: governor, throttling, affinity, NUMA, AES."""

from collections import Counter
from pathlib import Path

from mev.core.text import counted
from mev.doctor.files import (
    numbered,
    online_cpus,
    parse_cpus,
    parse_fields,
    read,
    read_int,
    show_cpus,
    to_int,
)
from mev.doctor.finding import Finding, judged, not_applicable

_CPUS = "sys/devices/system/cpu"
_LEAST_CPUS = 2
_QUIET_SHARE = 0.01
_THROTTLED = ("nr_periods", "nr_throttled")


def check_governor(root: Path) -> Finding:
    """Check that the frequency governor of every processor is `performance`."""
    name = "CPU governor"
    found = Counter(
        text
        for cpu in numbered(root / _CPUS, "cpu")
        if (text := read(cpu / "cpufreq/scaling_governor"))
    )
    if not found:
        return not_applicable(name, "the kernel does not control the frequency (virtual machine?)")
    shown = ", ".join(f"{governor} on {counted(n, 'CPU')}" for governor, n in sorted(found.items()))
    return judged(
        name,
        good=set(found) == {"performance"},
        wanted="performance on every CPU",
        found=shown,
        cost="after each pause the CPU starts slow; the first events of a burst are late",
        remedy="cpupower frequency-set -g performance",
    )


def check_heat(root: Path) -> Finding:
    """Check that no processor was throttled for heat since the start of the machine."""
    name = "Thermal throttling"
    counts = [
        count
        for cpu in numbered(root / _CPUS, "cpu")
        for part in ("core", "package")
        if (count := read_int(cpu / f"thermal_throttle/{part}_throttle_count")) is not None
    ]
    if not counts:
        return not_applicable(name, "the kernel has no counters of it here")
    return judged(
        name,
        good=not any(counts),
        wanted="never since the start of the machine",
        found=f"{max(counts)} times on the worst CPU" if any(counts) else "never",
        cost="a throttled CPU is slower at the highest load",
        remedy="check cooling and power limits",
    )


def check_quota(root: Path, pid: str) -> Finding:
    """Check that no CPU quota of a control group throttles the process `pid`."""
    name = "CPU quota"
    if (group := _control_group(read(root / "proc" / pid / "cgroup") or "")) is None:
        return not_applicable(name, "the process is in no control group of version 2")
    folder = root / "sys/fs/cgroup" / group.lstrip("/")
    counts = parse_counts(read(folder / "cpu.stat") or "")
    periods, throttled = (counts.get(key, 0) for key in _THROTTLED)
    quota = (read(folder / "cpu.max") or "max").split()
    if quota[:1] == ["max"] or not quota:
        return not_applicable(name, "none is set")
    share = throttled / periods if periods > 0 else 0.0
    return judged(
        name,
        good=share <= _QUIET_SHARE,
        wanted=f"throttled in at most {_QUIET_SHARE:.0%} of periods",
        found=f"{' of '.join(quota)} µs, throttled in {share:.1%} of periods",
        cost="the process stands still until the next period, usually tens of milliseconds",
        remedy="raise CPUQuota= of the unit, or the CPU limit of the container",
    )


def _control_group(text: str) -> str | None:
    """Return the path of the group of version 2; a path outside the namespace is none."""
    for line in text.splitlines():
        if line.startswith("0::/") and ".." not in line:
            return line.removeprefix("0::")
    return None


def parse_counts(text: str) -> dict[str, int]:
    """Return the numbers of lines ``name number``; other lines are ignored."""
    pairs = (line.split() for line in text.splitlines())
    return {
        pair[0]: number
        for pair in pairs
        if len(pair) == 2 and (number := to_int(pair[1])) is not None
    }


def _allowed(root: Path, pid: str) -> frozenset[int] | None:
    fields = parse_fields(read(root / "proc" / pid / "status") or "")
    return parse_cpus(fields.get("Cpus_allowed_list", "")) or None


def check_affinity(root: Path, pid: str) -> Finding:
    """Check that the process `pid` may use two processors or more."""
    name = "CPU affinity"
    online, allowed = online_cpus(root), _allowed(root, pid)
    if allowed is None:
        return not_applicable(name, "the kernel does not say which CPUs the process may use")
    usable = allowed & online if online else allowed
    isolated = parse_cpus(read(root / _CPUS / "isolated") or "") or frozenset()
    found = f"CPUs {show_cpus(usable)}"
    if online and usable == online:
        found = f"all {len(online)} online CPUs" if len(online) > 1 else "the only online CPU"
    if isolated:
        found += f"; isolated: {show_cpus(isolated)}"
    return judged(
        name,
        good=len(usable) >= _LEAST_CPUS,
        wanted=f"{_LEAST_CPUS} CPUs or more",
        found=found,
        cost="event loop, Kafka threads and the sink wait for each other",
        remedy="widen CPUAffinity= of the unit or the `taskset` of the command; or add CPUs",
    )


def check_numa(root: Path, pid: str) -> Finding:
    """Check that the process `pid` runs on the processors of one NUMA node."""
    name = "NUMA"
    nodes = {
        node.name: cpus
        for node in numbered(root / "sys/devices/system/node", "node")
        if (cpus := parse_cpus(read(node / "cpulist") or ""))
    }
    if len(nodes) < 2:
        return not_applicable(name, "one node" if nodes else "the kernel shows no nodes")
    if (allowed := _allowed(root, pid)) is None:
        return not_applicable(name, "the kernel does not say which CPUs the process may use")
    used = [node for node, cpus in nodes.items() if cpus & allowed]
    return judged(
        name,
        good=len(used) == 1,
        wanted="the process runs on one node, that of the network card",
        found=f"CPUs of {', '.join(used) or 'no node'}",
        cost="memory of another node is slower to read",
        remedy="CPUAffinity= and NUMAPolicy=bind in the unit, or `numactl -N 0 -m 0 mev up`",
    )


def check_aes(root: Path) -> Finding:
    """Check that the processor has instructions for AES."""
    name = "AES instructions"
    fields = parse_fields(read(root / "proc/cpuinfo") or "")
    if (flags := fields.get("flags", fields.get("Features"))) is None:
        return not_applicable(name, "the kernel does not list the processor's features")
    present = "aes" in flags.split()
    return judged(
        name,
        good=present,
        wanted="present",
        found="present" if present else "missing",
        cost="TLS and QUIC need much more CPU time a byte",
        remedy="pass the CPU's features to the virtual machine (`-cpu host`)",
    )
