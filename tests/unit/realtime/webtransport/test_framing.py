"""Tests of capsules and lines, in whatever pieces they arrive."""

import contextlib

import pytest
from aioquic.buffer import encode_uint_var
from hypothesis import given
from hypothesis import strategies as st

from mev.realtime.webtransport.framing import (
    CapsuleError,
    CapsuleReader,
    Closed,
    Lines,
    LineTooLongError,
    close_capsule,
)

OTHERS = st.tuples(
    st.integers(0, 2**62 - 1).filter(lambda kind: kind != 0x2843), st.binary(max_size=50)
)


def test_the_bytes_of_a_close() -> None:
    assert close_capsule(4401, "bye").hex() == "6843" + "07" + "00001131" + "627965"


@given(
    st.lists(OTHERS, max_size=3),
    st.integers(0, 2**32 - 1),
    st.text(max_size=80),
    st.integers(1, 40),
)
def test_a_close_is_found_behind_others(
    others: list[tuple[int, bytes]], code: int, reason: str, cut: int
) -> None:
    data = b"".join(
        encode_uint_var(kind) + encode_uint_var(len(value)) + value for kind, value in others
    ) + close_capsule(code, reason)
    reader = CapsuleReader()
    found = [reader.feed(data[start : start + cut]) for start in range(0, len(data), cut)]
    assert found[-1] == Closed(code, reason)
    assert found[:-1] == [None] * (len(found) - 1)


@given(st.binary(max_size=200))
def test_anything_else_is_bounded_and_refused_by_name(data: bytes) -> None:
    reader = CapsuleReader()
    with contextlib.suppress(CapsuleError):
        reader.feed(data)
    assert len(reader._buffer) <= 1100


def test_a_long_reason_is_cut_between_characters() -> None:
    assert CapsuleReader().feed(close_capsule(1, "x" + "ä" * 600)) == Closed(1, "x" + "ä" * 511)


@pytest.mark.parametrize("size", [0, 3, 1029])
def test_a_close_of_the_wrong_size(size: int) -> None:
    with pytest.raises(CapsuleError):
        CapsuleReader().feed(encode_uint_var(0x2843) + encode_uint_var(size) + bytes(size))


def drain(lines: Lines) -> list[bytes]:
    found = []
    while (line := lines.next()) is not None:
        found.append(line)
    return found


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.integers(1, 9))
def test_lines_come_out_whole_and_in_order(sent: list[bytes], cut: int) -> None:
    data = b"".join(line + b"\n" for line in sent)
    lines, found = Lines(20), []
    for start in range(0, len(data), cut):
        lines.feed(data[start : start + cut])
        found += drain(lines)
    assert found == [line for line in sent if line.strip()]
    assert len(lines) == 0


@pytest.mark.parametrize("data", [b"x" * 11, b"x" * 11 + b"\n", b"ok\n" + b"x" * 11])
def test_line_above_the_limit_is_refused(data: bytes) -> None:
    lines = Lines(10)
    lines.feed(data)
    with pytest.raises(LineTooLongError):
        drain(lines)


def test_line_limit_may_change_between_lines() -> None:
    lines = Lines(2)
    lines.feed(b"ab\nabcdef\n")
    assert lines.next() == b"ab"
    lines.max_size = 6
    assert lines.next() == b"abcdef"
