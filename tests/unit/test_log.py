"""Tests of the log: every record is one line, whatever its content."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mev.core import log

LOG = logging.getLogger("test")
FORGED = "it\n2026-01-01 00:00:00,000 INFO control: all is well\r\x1b[2K\u202e"
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.MULTILINE)


def fail() -> None:
    raise ValueError(FORGED)


class Clock:
    """A clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def configured(repeats: log.RepeatFilter) -> Iterator[None]:
    """Log as a running system does, for a while."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # those of the test runner are not ours to close
    log.configure("INFO", repeats)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_a_message_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with configured(log.RepeatFilter(60)):
        LOG.info("somebody said %s, née Müller", FORGED, extra={"action": "heard"})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        r" INFO heard: somebody said it\n2026-01-01 00:00:00,000 INFO control: all is"
        r" well\r\x1b[2K\u202e, née Müller"
    )


def test_an_error_is_told_in_lines_that_look_like_no_record(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with configured(log.RepeatFilter(60)):
        try:
            fail()
        except ValueError:
            LOG.exception("it failed")
    said = capsys.readouterr().err
    assert "  ValueError: it" in said
    assert len(STAMP.findall(said)) == 1
    assert not {"\r", "\x1b", "\u202e"} & set(said)


def test_one_place_logs_only_so_much_and_says_what_it_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock, left_out = Clock(), list[str]()

    def bad(number: int) -> None:
        LOG.warning("bad packet %d", number)

    with configured(log.RepeatFilter(3, clock=clock, on_left_out=left_out.append)):
        for number in range(10):
            bad(number)
        LOG.warning("something else")
        clock.now_s = 20.0  # a third of a minute: one record
        for number in range(10, 12):
            bad(number)
        clock.now_s = 3600.0
        for number in range(12, 16):
            bad(number)
    said = [line.split("test: ")[1] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "bad packet 0",
        "bad packet 1",
        "bad packet 2",
        "something else",
        "bad packet 10 (7 more like this were left out before it)",
        "bad packet 12 (1 more like this were left out before it)",
        "bad packet 13",
        "bad packet 14",
    ]
    assert left_out == ["test"] * 9


def test_next_record_of_a_place_tells_how_many_were_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with configured(log.RepeatFilter(1, clock=clock)):
        for number in range(7):
            clock.now_s = 60.0 if number == 6 else 0.0
            LOG.warning("bad packet %d", number)
    said = [line.split("test: ")[1] for line in capsys.readouterr().err.splitlines()]
    assert said == ["bad packet 0", "bad packet 6 (5 more like this were left out before it)"]


@pytest.mark.parametrize("library", ["quic", "http3", "uvicorn.error"])
def test_warnings_of_libraries_about_what_clients_sent_are_not_logged(
    capsys: pytest.CaptureFixture[str], library: str
) -> None:
    with configured(log.RepeatFilter(60)):
        logging.getLogger(library).warning("something a client sent")
        assert not capsys.readouterr().err
        logging.getLogger(library).error("something of ours")
    assert "something of ours" in capsys.readouterr().err
