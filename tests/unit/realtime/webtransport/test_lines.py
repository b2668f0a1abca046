"""Lines, whichever way they are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.realtime.webtransport.lines import Lines, LineTooLongError


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
def test_too_long(data: bytes) -> None:
    lines = Lines(10)
    lines.feed(data)
    with pytest.raises(LineTooLongError):
        drain(lines)


def test_the_limit_may_change_between_lines() -> None:
    lines = Lines(2)
    lines.feed(b"ab\nabcdef\n")
    assert lines.next() == b"ab"
    lines.max_size = 6
    assert lines.next() == b"abcdef"
