"""Checks of clocks: source, synchronisation by NTP or PTP, and the offset of TAI."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

from mev.doctor.files import children, read
from mev.doctor.finding import Finding, State, judged, not_applicable

_SOURCES = "sys/devices/system/clocksource/clocksource0"
_FAST = frozenset({"tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page"})
"""Sources that a program reads without a system call."""
_NTP = ("chronyd", "systemd-timesyn", "ntpd", "openntpd")
_PTP = ("ptp4l", "phc2sys")
_UNSYNCHRONISED, _NANOSECONDS = 0x0040, 0x2000
_LONGEST_ERROR_S = 0.1
_TAI_S = 37
"""UTC is this much behind TAI since 2017."""


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", ctypes.c_long * 2),
        ("tick", ctypes.c_long),
        ("ppsfreq", ctypes.c_long),
        ("jitter", ctypes.c_long),
        ("shift", ctypes.c_int),
        ("pps", ctypes.c_long * 5),
        ("tai", ctypes.c_int),
        ("reserved", ctypes.c_int * 11),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelClock:
    """The kernel's discipline of the system clock."""

    synchronised: bool
    offset_s: float
    max_error_s: float
    tai_s: int


def read_kernel_clock() -> KernelClock | None:
    """Return the discipline of the system clock, None where the kernel does not tell."""
    found = _Timex()
    try:
        if ctypes.CDLL(None).adjtimex(ctypes.byref(found)) < 0:
            return None
    except (AttributeError, OSError):
        return None
    return KernelClock(
        synchronised=not found.status & _UNSYNCHRONISED,
        offset_s=found.offset / (1e9 if found.status & _NANOSECONDS else 1e6),
        max_error_s=found.maxerror / 1e6,
        tai_s=found.tai,
    )


def running_daemons(root: Path) -> list[str]:
    """Return the programs that synchronise clocks and run now, in order of their names."""
    names = {read(process / "comm") for process in children(root / "proc", "[0-9]*")}
    return sorted(name for name in (*_NTP, *_PTP) if name in names)


def check_source(root: Path) -> Finding:
    """Check that the clock is read without a system call."""
    name = "Clock source"
    if not (source := read(root / _SOURCES / "current_clocksource")):
        return not_applicable(name, "the kernel does not show it")
    available = (read(root / _SOURCES / "available_clocksource") or "").split()
    better = sorted(_FAST.intersection(available))
    return judged(
        name,
        good=source in _FAST,
        wanted="one that is read without a system call, such as tsc",
        found=f"{source}; available: {', '.join(available) or 'unknown'}",
        cost="each reading of the time is a system call",
        remedy=f"echo {better[0]} > /{_SOURCES}/current_clocksource"
        if better
        else "boot with clocksource=tsc tsc=reliable if the hardware allows",
    )


def check_synchronisation(
    clock: KernelClock | None, daemons: list[str], *, several_machines: bool
) -> Finding:
    """Check that a program synchronises the system clock, and how far it is off.

    A clock that is not synchronised is a problem if other machines are involved.
    """
    name = "Clock synchronisation"
    by = ", ".join(daemons) or "no NTP or PTP program"
    if clock is None:
        return not_applicable(name, f"the kernel does not show it; {by} runs here")
    error = f"offset {clock.offset_s * 1e3:.3f} ms, error at most {clock.max_error_s * 1e3:.0f} ms"
    return judged(
        name,
        good=clock.synchronised and clock.max_error_s <= _LONGEST_ERROR_S,
        wanted=f"synchronised, error at most {_LONGEST_ERROR_S * 1e3:.0f} ms",
        found=f"synchronised by {by}: {error}"
        if clock.synchronised
        else f"not synchronised; {by} runs here",
        cost="leases and expiries of commands are wrong by the difference of the clocks;"
        " latencies between machines mean nothing",
        remedy="install and start chrony, then check with `chronyc tracking`",
        otherwise=State.PROBLEM if several_machines and not clock.synchronised else State.WARNING,
    )


def check_ptp(root: Path, daemons: list[str]) -> Finding:
    """Check that a clock of the hardware is used where there is one."""
    name = "PTP"
    clocks = [
        f"/dev/{clock.name} ({read(clock / 'clock_name') or 'no name'})"
        for clock in children(root / "sys/class/ptp", "ptp*")
    ]
    if not clocks:
        return not_applicable(name, "no clock of the hardware (/dev/ptp*)")
    running = [daemon for daemon in daemons if daemon in _PTP]
    return judged(
        name,
        good=bool(running) or "chronyd" in daemons,
        wanted="ptp4l and phc2sys, or chronyd, use it",
        found=f"{', '.join(clocks)}; {', '.join(daemons) or 'no program'} runs",
        cost="time stamps are less exact than the hardware allows",
        remedy="start ptp4l and phc2sys, or `refclock PHC /dev/ptp0` in chrony.conf",
    )


def check_tai(clock: KernelClock | None) -> Finding:
    """Check that the kernel knows the difference of UTC and TAI, if it is set at all."""
    name = "UTC and TAI"
    if clock is None or not clock.tai_s:
        return not_applicable(name, "the kernel has no offset of TAI; PTP and CLOCK_TAI need it")
    return judged(
        name,
        good=clock.tai_s == _TAI_S,
        wanted=f"TAI - UTC = {_TAI_S} s",
        found=f"{clock.tai_s} s",
        cost="times of PTP are wrong by whole seconds",
        remedy="`leapsectz right/UTC` in chrony.conf, or a current utc_offset in ptp4l.conf",
    )
