"""The status line of `mev agent run` in a terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
from collections.abc import Iterator

import httpx
import pytest

from tests.services.fleet import Fleet
from tests.services.system import RunningSystem
from tests.services.waits import until, until_document

COLUMNS = 60
CLEAR = "\r\x1b[K"


@pytest.fixture
def fleet(system: RunningSystem) -> Iterator[Fleet]:
    found = Fleet(system)
    yield found
    found.close()


class Screen:
    """Everything that a program has written to its terminal."""

    def __init__(self, outer: int) -> None:
        self._outer = outer
        self.seen = ""

    def until(self, text: str) -> None:
        """Read until the program has written `text`."""

        def read() -> str:
            if select.select([self._outer], [], [], 0.5)[0]:
                self.seen += os.read(self._outer, 65536).decode()
            return self.seen

        until(read, lambda seen: text in seen)


@pytest.mark.slow
def test_log_records_do_not_run_into_the_status_line(
    system: RunningSystem, http: httpx.Client, fleet: Fleet
) -> None:
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    screen = Screen(outer)
    fleet.start("terminal-1", os.fdopen(inner, "wb"))
    screen.until("terminal-1 (arbitrage) HALTED | lease")
    for level in ("NO_NEW", "HALTED"):
        body = {"scope": "agent", "target": "terminal-1", "level": level, "reason": "test"}
        command_id = http.post("/api/control/kill-switch", json=body).json()["id"]
        path = f"/api/control/commands/{command_id}"
        until_document(http, path, lambda command: command["states"]["SYNCED"] == 1)
    fleet.signal("terminal-1", signal.SIGINT)
    screen.until("HALTED: stopped by operator")
    os.close(outer)
    parts = [part for line in screen.seen.split("\n") for part in line.split(CLEAR)]
    records = [part for part in parts if re.search(r"\d{4}-\d\d-\d\d [\d:,]+ (INFO|WARNING)", part)]
    assert records
    for record in records:
        assert re.match(r"\d{4}-\d\d-\d\d [\d:,]+ (INFO|WARNING)", record), record
    shown = [part for part in parts if part.startswith("terminal-1 (arbitrage) HALTED | lease")]
    assert shown
    assert max(map(len, shown)) < COLUMNS
