"""Tests of the checks of network cards, with a driver that answers from a table."""

import struct
from pathlib import Path

import pytest

from mev.doctor import network
from mev.doctor.finding import State
from tests.unit.doctor.tree import CPU, write

CARD = "sys/class/net/eth0"


def with_card(root: Path, *, queues: int = 1, rps: str = "0", state: str = "up") -> Path:
    """Write a card of `queues` receive queues on a machine of 8 CPUs."""
    write(root, {f"{CPU}/online": "0-7", f"{CARD}/device/vendor": "", f"{CARD}/operstate": state})
    return write(root, {f"{CARD}/queues/rx-{n}/rps_cpus": rps for n in range(queues)})


def silent(name: str, request: bytes) -> bytes | None:
    """Answer as a driver without ethtool does."""
    del name, request
    return None


@pytest.mark.parametrize(
    ("queues", "rps", "state"),
    [
        (1, "00,00000000", State.WARNING),
        (1, "00,000000ff", State.OK),
        (8, "00", State.OK),
        (0, "", State.NOT_APPLICABLE),
    ],
)
def test_queues(tmp_path: Path, queues: int, rps: str, state: State) -> None:
    with_card(tmp_path, queues=queues, rps=rps)
    assert network.check_cards(tmp_path, silent)[0].state is state


def test_card_that_is_down_or_virtual_is_not_checked(tmp_path: Path) -> None:
    with_card(tmp_path, state="down")
    write(tmp_path, {"sys/class/net/lo/operstate": "unknown"})
    (found,) = network.check_cards(tmp_path, silent)
    assert found.state is State.NOT_APPLICABLE


def test_offload_that_is_off_is_named() -> None:
    def without_gro(name: str, request: bytes) -> bytes | None:
        command, _ = struct.unpack("=II", request)
        return struct.pack("=II", command, command != 0x2B) if name == "eth0" else None

    found = network.check_offloads("eth0", without_gro)
    assert (found.state, found.found) == (State.WARNING, "off: GRO")
    assert network.check_offloads("eth1", without_gro).state is State.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("flags", "clock", "state", "text"),
    [
        (0b101_1111, 3, State.OK, "by the card, clock /dev/ptp3"),
        (0b101_1111, -1, State.OK, "by the card"),
        (0b000_1100, -1, State.OK, "by the kernel; the card has none"),
        (0b001_1000, -1, State.OK, "by the kernel; the card has none"),
        (0, -1, State.WARNING, "none"),
    ],
)
def test_timestamps(flags: int, clock: int, state: State, text: str) -> None:
    def stamping(name: str, request: bytes) -> bytes | None:
        assert (name, len(request)) == ("eth0", 44)
        return struct.pack("=IIiI12xI12x", 0x41, flags, clock, 0, 0)

    found = network.check_timestamps("eth0", stamping)
    assert (found.state, found.found) == (state, text)


def test_card_that_does_not_exist_gives_no_answer() -> None:
    assert network.ask_card("nosuchcard0", bytes(44)) is None
