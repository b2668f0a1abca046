"""Checks of network cards: queues, offloads, time stamps."""

import ctypes
import fcntl
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mev.core.text import counted, shown
from mev.doctor.files import children, numbered, online_cpus, read
from mev.doctor.finding import Finding, State, judged, not_applicable

Ask = Callable[[str, bytes], bytes | None]
"""Sends a request of ethtool to the card of that name; None where it is not supported."""

_SIOCETHTOOL = 0x8946
_NAME_BYTES = 15
_OFFLOADS = {
    "receive checksums": 0x14,
    "transmit checksums": 0x16,
    "TSO": 0x1E,
    "GRO": 0x2B,
}
_GET_TIMESTAMPS = 0x41
_TIMESTAMPS = struct.Struct("=IIiI12xI12x")
_RECEIVE_HARDWARE, _RAW_HARDWARE, _RECEIVE_SOFTWARE = 1 << 2, 1 << 6, 1 << 3


def ask_card(name: str, request: bytes) -> bytes | None:
    """Return the kernel's answer to a request of ethtool about a card, None if it refuses."""
    buffer = ctypes.create_string_buffer(request, len(request))
    query = struct.pack("16sP16x", name.encode()[:_NAME_BYTES], ctypes.addressof(buffer))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            fcntl.ioctl(handle, _SIOCETHTOOL, query)
    except OSError:
        return None
    return buffer.raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Timestamps:
    """Time stamping of packets: by the card, by the kernel, or neither."""

    hardware: bool
    software: bool
    clock: int | None
    """Number of the card's clock: ``/dev/ptpN``."""


def parse_timestamps(answer: bytes) -> Timestamps | None:
    """Return the time stamps in an answer of ethtool, None if it is too short."""
    if len(answer) < _TIMESTAMPS.size:
        return None
    _, flags, clock, _, _ = _TIMESTAMPS.unpack_from(answer)
    hardware = _RECEIVE_HARDWARE | _RAW_HARDWARE
    return Timestamps(
        hardware=flags & hardware == hardware,
        software=bool(flags & _RECEIVE_SOFTWARE),
        clock=clock if clock >= 0 else None,
    )


def cards(root: Path) -> list[Path]:
    """Return the folders of the network cards that are up; virtual ones have no device."""
    return [
        card
        for card in children(root / "sys/class/net", "*")
        if (card / "device").exists() and read(card / "operstate") in {"up", "unknown"}
    ]


def check_cards(root: Path, ask: Ask = ask_card) -> list[Finding]:
    """Check queues, offloads and time stamps of every network card that is up."""
    found = [
        finding
        for card in cards(root)
        for finding in (
            check_queues(root, card),
            check_offloads(card.name, ask),
            check_timestamps(card.name, ask),
        )
    ]
    return found or [not_applicable("Network cards", "none is up; virtual ones are not checked")]


def check_queues(root: Path, card: Path) -> Finding:
    """Check that more than one processor can receive the packets of a card."""
    name = f"{shown(card.name)} queues"
    queues, cpus = numbered(card / "queues", "rx-"), len(online_cpus(root) or ())
    if not queues:
        return not_applicable(name, "the kernel shows no receive queues")
    spread = any((read(queue / "rps_cpus") or "").strip("0,") for queue in queues)
    return judged(
        name,
        good=len(queues) > 1 or cpus < 4 or spread,
        wanted="several receive queues, or packets spread over CPUs (RPS)",
        found=f"{counted(len(queues), 'receive queue')}, RPS {'on' if spread else 'off'}",
        cost="one CPU handles the interrupts of all packets",
        remedy=f"ethtool -L {shown(card.name)} combined N, or a mask in"
        f" /sys/class/net/{shown(card.name)}/queues/rx-0/rps_cpus",
    )


def check_offloads(name: str, ask: Ask) -> Finding:
    """Check that the card relieves the processor of checksums and segments."""
    values = {
        offload: struct.unpack_from("=I", answer, 4)[0] != 0
        for offload, command in _OFFLOADS.items()
        if (answer := ask(name, struct.pack("=II", command, 0))) is not None and len(answer) >= 8
    }
    if not values:
        return not_applicable(f"{shown(name)} offloads", "the driver does not show them")
    off = [offload for offload, on in values.items() if not on]
    return judged(
        f"{shown(name)} offloads",
        good=not off,
        wanted=f"on: {', '.join(values)}",
        found=f"off: {', '.join(off)}" if off else f"on: {', '.join(values)}",
        cost="the CPU does this work for each packet",
        remedy=f"ethtool -K {shown(name)} rx on tx on tso on gro on",
    )


def check_timestamps(name: str, ask: Ask) -> Finding:
    """Show whether the card or the kernel stamps received packets."""
    title = f"{shown(name)} time stamps"
    answer = ask(name, struct.pack("=I", _GET_TIMESTAMPS).ljust(_TIMESTAMPS.size, b"\0"))
    if answer is None or (stamps := parse_timestamps(answer)) is None:
        return not_applicable(title, "the driver does not show them")
    if stamps.hardware:
        clock = "" if stamps.clock is None else f", clock /dev/ptp{stamps.clock}"
        return Finding(name=title, state=State.OK, found=f"by the card{clock}", wanted="any")
    return judged(
        title,
        good=stamps.software,
        wanted="by the card, else by the kernel",
        found="by the kernel; the card has none" if stamps.software else "none",
        cost="the arrival of a packet is known only when the program reads it",
        remedy="use a card and driver with receive time stamps",
    )
