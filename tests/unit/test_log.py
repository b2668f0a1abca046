"""The log: a record is one line, whoever wrote what is in it."""

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


@contextmanager
def configured() -> Iterator[None]:
    """Log as a running system does, for a while."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # those of the test runner are not ours to close
    log.configure("INFO")
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_a_message_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        LOG.info("somebody said %s, née Müller", FORGED, extra={"action": "heard"})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(r" INFO heard: somebody said it\n2026-01-01 00:00:00,000 INFO control: all is well\r\x1b[2K\u202e, née Müller")


def test_an_error_is_told_in_lines_that_look_like_no_record(capsys: pytest.CaptureFixture[str]) -> None:
    with configured():
        try:
            fail()
        except ValueError:
            LOG.exception("it failed")
    said = capsys.readouterr().err
    assert "  ValueError: it" in said
    assert len(STAMP.findall(said)) == 1
    assert not {"\r", "\x1b", "\u202e"} & set(said)
