"""Measure the CPU time of an idle system with agents.

Usage: `measure_idle.py [--agents N] [--seconds S] [--threads]`. Starts `mev up` with its embedded
services in an empty data folder and the agents beside it, waits until all are online and the start
is over, and prints the CPU time of each process in percent of one core. Everything is stopped at
the end.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from mev.store.folder import DataFolder, NotRunningError

MEV = Path(sys.executable).with_name("mev")
TICKS = os.sysconf("SC_CLK_TCK")
START_S = 120.0
KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG")
NAMES = {"mev.broker": "broker", "valkey-server": "valkey", "agent": "agent", "up": "mev up"}


def main() -> None:
    """Print a figure for each process, and for the whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--settle",
        type=float,
        default=30.0,
        help="seconds that the start may go on after all are online",
    )
    parser.add_argument("--threads", action="store_true", help="name the threads that took time")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        with contextlib.ExitStack() as stack:
            roots = [stack.enter_context(_mev(folder, "up"))]
            _wait(folder, 0)
            roots += [
                stack.enter_context(
                    _mev(folder, "agent", "run", "--module", "arbitrage", "--id", f"a{number}")
                )
                for number in range(given.agents)
            ]
            _wait(folder, given.agents)
            time.sleep(given.settle)
            pids = sorted({pid for root in roots for pid in _family(root)})
            _measure(pids, given.seconds, threads=given.threads)


def _measure(pids: list[int], seconds: float, *, threads: bool) -> None:
    before = {pid: (_taken(pid), _switches(pid), _threads(pid)) for pid in pids}
    time.sleep(seconds)
    total = 0.0
    for pid, (taken, switches, then) in before.items():
        percent = (_taken(pid) - taken) / seconds * 100
        total += percent
        _print(_name(pid), percent, f", {(_switches(pid) - switches) / seconds:6.0f} wake-ups/s")
        for thread, (name, own) in (
            sorted(_threads(pid).items(), key=lambda item: -item[1][1]) if threads else ()
        ):
            if (share := (own - then.get(thread, ("", 0.0))[1]) / seconds * 100) >= 0.01:
                _print(f"  {name}", share)
    _print("total", total)


@contextlib.contextmanager
def _mev(folder: Path, *arguments: str) -> Iterator[int]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    own = {"MEV_DATA_DIR": str(folder), "API_PORT": "0", "WT_PORT": "0"}
    with folder.with_name("mev.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - ours
            [MEV, *arguments], env=kept | own, stdout=log, stderr=log
        )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait(folder: Path, agents: int) -> None:
    data, deadline = DataFolder(folder), time.monotonic() + START_S
    while True:
        with contextlib.suppress(NotRunningError, httpx.HTTPError):
            url, key = data.read_runtime().api, data.secret("master-api-key")
            page = httpx.get(f"{url}/api/control/agents", headers={"X-API-Key": key}).json()[
                "items"
            ]
            if sum(item["online"] and item["module"] == "arbitrage" for item in page) >= agents:
                return
        if time.monotonic() > deadline:
            sys.exit(f"the system did not start:\n{folder.with_name('mev.log').read_text()}")
        time.sleep(0.2)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [
        pid,
        *(
            one
            for path in children
            for child in path.read_text().split()
            for one in _family(int(child))
        ),
    ]


def _taken(pid: int) -> float:
    """Return the CPU seconds of a process, including ended threads and reaped children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def _threads(pid: int) -> dict[int, tuple[str, float]]:
    """Return the name and the seconds of every thread that runs."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found[int(task.name)] = (
                (task / "comm").read_text().strip(),
                int((task / "schedstat").read_text().split()[0]) / 1e9,
            )
    return found


def _switches(pid: int) -> int:
    """Return the number of voluntary context switches of a process's threads."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):
            total += int(status.read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return total


def _print(name: str, value: float, more: str = "") -> None:
    sys.stdout.write(f"{name:10} {value:6.2f} % of a core{more}\n")


def _name(pid: int) -> str:
    words = [
        Path(f"/proc/{pid}/comm").read_text().strip(),
        *Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"),
    ]
    return next(
        (
            name
            for word, name in NAMES.items()
            if any(part.rpartition("/")[2] == word for part in words)
        ),
        "other",
    )


if __name__ == "__main__":
    main()
