"""Tests of the readers of `/proc` and `/sys`."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.doctor.files import numbered, parse_choice, parse_cpus, parse_fields, read, show_cpus
from mev.doctor.kernel import parse_limits, parse_swaps
from mev.doctor.network import parse_timestamps
from mev.doctor.processor import parse_counts
from tests.unit.doctor.tree import write


@given(st.frozensets(st.integers(0, 4095), max_size=40))
def test_cpu_list_is_read_as_it_was_written(cpus: frozenset[int]) -> None:
    assert parse_cpus(show_cpus(cpus)) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "0-99999999999", "1-2-3", "0,x"])
def test_malformed_cpu_list_is_none(text: str) -> None:
    assert parse_cpus(text) is None


@given(st.text())
def test_parsers_accept_any_text(text: str) -> None:
    for parse in (parse_cpus, parse_choice, parse_fields, parse_limits, parse_swaps, parse_counts):
        parse(text)


@given(st.binary(max_size=64))
def test_time_stamps_accept_any_bytes(answer: bytes) -> None:
    assert (parse_timestamps(answer) is None) == (len(answer) < 44)


def test_unreadable_files_are_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    assert read(tmp_path / "missing") is None
    assert read(write(tmp_path, {"bad": b"\xff\xfe"}) / "bad") == "\ufffd\ufffd"


def test_numbered_entries_are_in_order_of_numbers(tmp_path: Path) -> None:
    write(tmp_path, {f"cpu{name}/x": "" for name in ("10", "9", "freq", "idle", "²")})
    assert [path.name for path in numbered(tmp_path, "cpu")] == ["cpu9", "cpu10"]
