"""Tests of the checks of clocks."""

from dataclasses import replace
from pathlib import Path

import pytest

from mev.doctor import clock
from mev.doctor.clock import KernelClock
from mev.doctor.finding import State
from tests.unit.doctor.tree import write

SOURCES = "sys/devices/system/clocksource/clocksource0"
GOOD = KernelClock(synchronised=True, offset_s=12e-6, max_error_s=0.004, tai_s=37)


@pytest.mark.parametrize(
    ("source", "state"),
    [("tsc", State.OK), ("kvm-clock", State.OK), ("hpet", State.WARNING)],
)
def test_source(tmp_path: Path, source: str, state: State) -> None:
    write(
        tmp_path,
        {f"{SOURCES}/current_clocksource": source, f"{SOURCES}/available_clocksource": "tsc hpet"},
    )
    found = clock.check_source(tmp_path)
    assert found.state is state
    if state is State.WARNING:
        assert found.remedy.startswith("echo tsc > /sys/")


@pytest.mark.parametrize(
    ("known", "several", "state"),
    [
        (GOOD, True, State.OK),
        (replace(GOOD, max_error_s=0.5), True, State.WARNING),
        (replace(GOOD, synchronised=False), False, State.WARNING),
        (replace(GOOD, synchronised=False), True, State.PROBLEM),
        (None, True, State.NOT_APPLICABLE),
    ],
)
def test_synchronisation(known: KernelClock | None, several: bool, state: State) -> None:
    found = clock.check_synchronisation(known, ["chronyd"], several_machines=several)
    assert found.state is state
    assert "chronyd" in found.found


def test_daemons_are_found_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"proc/1/comm": "systemd\n", "proc/22/comm": "phc2sys\n"})
    write(tmp_path, {"proc/31/comm": "chronyd\n", "proc/self/comm": "ntpd\n"})
    assert clock.running_daemons(tmp_path) == ["chronyd", "phc2sys"]


@pytest.mark.parametrize(
    ("daemons", "state"), [([], State.WARNING), (["ntpd"], State.WARNING), (["ptp4l"], State.OK)]
)
def test_hardware_clock_is_used(tmp_path: Path, daemons: list[str], state: State) -> None:
    write(tmp_path, {"sys/class/ptp/ptp0/clock_name": "mlx5_ptp\n"})
    found = clock.check_ptp(tmp_path, daemons)
    assert found.state is state
    assert "/dev/ptp0 (mlx5_ptp)" in found.found


@pytest.mark.parametrize(
    ("seconds", "state"), [(37, State.OK), (36, State.WARNING), (0, State.NOT_APPLICABLE)]
)
def test_offset_of_tai(seconds: int, state: State) -> None:
    assert clock.check_tai(replace(GOOD, tai_s=seconds)).state is state


def test_kernel_clock_of_this_machine_is_plausible() -> None:
    found = clock.read_kernel_clock()
    assert found is None or (abs(found.offset_s) <= 1 and 0 <= found.max_error_s <= 60)
