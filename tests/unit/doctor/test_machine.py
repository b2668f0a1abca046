"""Tests of the checks of processor, memory, limits and kernel parameters."""

from pathlib import Path

import pytest

from mev.doctor import kernel, processor
from mev.doctor.finding import State
from tests.unit.doctor.tree import CPU, limits, write

OK, WARNING, PROBLEM, NONE = State.OK, State.WARNING, State.PROBLEM, State.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("governors", "state"),
    [
        (["performance", "performance"], OK),
        (["performance", "powersave"], WARNING),
        ([], NONE),
        (["", ""], NONE),
    ],
)
def test_governor(tmp_path: Path, governors: list[str], state: State) -> None:
    write(
        tmp_path,
        {f"{CPU}/cpu{n}/cpufreq/scaling_governor": one for n, one in enumerate(governors)},
    )
    assert processor.check_governor(tmp_path).state is state


def test_governor_names_the_number_of_cpus_of_each(tmp_path: Path) -> None:
    names = ["powersave", "performance", "powersave"]
    write(tmp_path, {f"{CPU}/cpu{n}/cpufreq/scaling_governor": g for n, g in enumerate(names)})
    found = processor.check_governor(tmp_path).found
    assert found == "performance on 1 CPU, powersave on 2 CPUs"


@pytest.mark.parametrize(("count", "state"), [("0", OK), ("7", WARNING), ("x", NONE)])
def test_thermal_throttling(tmp_path: Path, count: str, state: State) -> None:
    write(tmp_path, {f"{CPU}/cpu0/thermal_throttle/package_throttle_count": count})
    assert processor.check_heat(tmp_path).state is state


@pytest.mark.parametrize(
    ("quota", "throttled", "state"),
    [("max 100000", 0, NONE), ("50000 100000", 0, OK), ("50000 100000", 40, WARNING)],
)
def test_cpu_quota(tmp_path: Path, quota: str, throttled: int, state: State) -> None:
    group = "sys/fs/cgroup/system.slice/mev.service"
    write(
        tmp_path,
        {
            "proc/7/cgroup": "1:name=old:/x\n0::/system.slice/mev.service\n",
            f"{group}/cpu.max": quota,
            f"{group}/cpu.stat": f"usage_usec 1\nnr_periods 100\nnr_throttled {throttled}\n",
        },
    )
    assert processor.check_quota(tmp_path, "7").state is state


def test_cpu_quota_outside_the_namespace_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, {"proc/7/cgroup": "0::/../../etc\n"})
    assert processor.check_quota(tmp_path, "7").state is NONE


@pytest.mark.parametrize(
    ("allowed", "state", "found"),
    [
        ("0-7", OK, "all 8 online CPUs"),
        ("2-3", OK, "CPUs 2-3"),
        ("5", WARNING, "CPUs 5"),
        ("?", NONE, ""),
    ],
)
def test_affinity(tmp_path: Path, allowed: str, state: State, found: str) -> None:
    write(
        tmp_path,
        {f"{CPU}/online": "0-7\n", "proc/7/status": f"Name:\tmev\nCpus_allowed_list:\t{allowed}"},
    )
    finding = processor.check_affinity(tmp_path, "7")
    assert finding.state is state
    assert finding.found.startswith(found)


@pytest.mark.parametrize(("allowed", "state"), [("0-3", OK), ("2-5", WARNING)])
def test_numa(tmp_path: Path, allowed: str, state: State) -> None:
    nodes = "sys/devices/system/node"
    write(
        tmp_path,
        {
            f"{nodes}/node0/cpulist": "0-3",
            f"{nodes}/node1/cpulist": "4-7",
            "proc/7/status": f"Cpus_allowed_list: {allowed}",
        },
    )
    assert processor.check_numa(tmp_path, "7").state is state


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("processor : 0\nflags\t\t: fpu aes avx\n", OK),
        ("Features\t: fp asimd aes\n", OK),
        ("flags\t\t: fpu vaes\n", WARNING),
        ("processor : 0\n", NONE),
    ],
)
def test_aes(tmp_path: Path, text: str, state: State) -> None:
    assert processor.check_aes(write(tmp_path, {"proc/cpuinfo": text})).state is state


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("always [madvise] never", OK),
        ("[always] madvise never", WARNING),
        ("always madvise never", NONE),
    ],
)
def test_huge_pages(tmp_path: Path, text: str, state: State) -> None:
    write(tmp_path, {"sys/kernel/mm/transparent_hugepage/enabled": text})
    assert kernel.check_huge_pages(tmp_path).state is state


@pytest.mark.parametrize(
    ("soft", "hard", "running", "state"),
    [
        (1024, 20_000, False, OK),
        (1024, 20_000, True, WARNING),
        (1024, 4096, False, WARNING),
        ("unlimited", "unlimited", True, OK),
        ("?", "?", True, NONE),
    ],
)
def test_open_files(
    tmp_path: Path, soft: object, hard: object, running: bool, state: State
) -> None:
    write(tmp_path, {"proc/7/limits": limits(soft=soft, hard=hard)})
    found = kernel.check_open_files(tmp_path, "7", wanted=11_024, running=running)
    assert found.state is state


def test_open_files_near_the_limit_are_a_problem(tmp_path: Path) -> None:
    write(tmp_path, {"proc/7/limits": limits(soft=10, hard=10)})
    write(tmp_path, {f"proc/7/fd/{n}": "" for n in range(9)})
    found = kernel.check_open_files(tmp_path, "7", wanted=5, running=True)
    assert found.state is PROBLEM
    assert found.found == "10, 9 open"


@pytest.mark.parametrize(("limit", "state"), [(9_999, OK), (100, WARNING), ("unlimited", OK)])
def test_processes(tmp_path: Path, limit: object, state: State) -> None:
    write(tmp_path, {"proc/7/limits": limits(processes=limit)})
    assert kernel.check_processes(tmp_path, "7").state is state


def test_parameters_are_the_effective_values(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/sys/net/core/somaxconn": "128\n",
            "proc/sys/net/ipv4/tcp_slow_start_after_idle": "0\n",
            "proc/sys/vm/overcommit_memory": "2\n",
            "proc/sys/vm/max_map_count": "many\n",
        },
    )
    found = {finding.name: finding for finding in kernel.check_parameters(tmp_path)}
    assert found["net.core.somaxconn"].state is WARNING
    assert found["net.core.somaxconn"].remedy == "sysctl -w net.core.somaxconn=2048"
    assert found["net.ipv4.tcp_slow_start_after_idle"].state is OK
    assert found["vm.overcommit_memory"].state is WARNING
    assert found["vm.max_map_count"].state is NONE
    assert found["net.core.rmem_max"].state is NONE


@pytest.mark.parametrize(
    ("areas", "swap", "swappiness"),
    [
        ("", NONE, NONE),
        ("/dev/sda2 partition 8388604 0 -2\n", OK, WARNING),
        ("/dev/sda2 partition 8388604 409600 -2\n", WARNING, WARNING),
    ],
)
def test_swap_and_swappiness(tmp_path: Path, areas: str, swap: State, swappiness: State) -> None:
    write(
        tmp_path,
        {
            "proc/swaps": f"Filename Type Size Used Priority\n{areas}",
            "proc/sys/vm/swappiness": "60",
        },
    )
    assert kernel.check_swap(tmp_path).state is swap
    found = {finding.name: finding.state for finding in kernel.check_parameters(tmp_path)}
    assert found["vm.swappiness"] is swappiness


@pytest.mark.parametrize(("bits", "state"), [("256", OK), ("12", WARNING), ("", NONE)])
def test_entropy(tmp_path: Path, bits: str, state: State) -> None:
    write(tmp_path, {"proc/sys/kernel/random/entropy_avail": bits})
    assert kernel.check_entropy(tmp_path).state is state
