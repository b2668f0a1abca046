"""The command ``mev tail``.

The composition root makes it with :func:`make_tail`, which is told how to find the running system. Events go to standard output, one a
line; everything else, losses above all, to standard error. Exit codes: 0 ended, 1 the system failed, 2 something to mend.
"""

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, BinaryIO, cast

import typer
from rich.console import Console

from mev.client.batch import Batch
from mev.client.cursor import Cursor, Slot, Start
from mev.client.errors import BadOptionError
from mev.client.feed import OnSlow
from mev.client.line import json_line, line
from mev.client.stream import Stream
from mev.core.clock import now_ns
from mev.core.text import shown

_ON_SLOW = ("drop_oldest", "conflate", "lossless")
_STARTS = "live, earliest, a time such as 2026-11-22T10:00:00Z, slot:N or cursor:JSON"
_CHUNK = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the events are, and what opens the door: asked again before each connection."""

    url: str
    credential: Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to show."""

    topics: list[str]
    filter: list[str]
    start: Start
    on_slow: OnSlow
    max_rate: int | None = None
    count: int | None = None
    json: bool = False


def make_tail(locate: Callable[[], Source]) -> Callable[..., None]:
    """Return the function that Typer registers as ``tail``."""

    def tail(
        types: Annotated[list[str] | None, typer.Argument(help="Event types or patterns, 'agent_*'; else all.", show_default=False)] = None,
        filter: Annotated[  # noqa: A002 - as the protocol calls it
            list[str] | None, typer.Option(help="Condition, 'profit_lamports >= 1000000'; all that are given hold.", show_default=False)
        ] = None,
        start: Annotated[str, typer.Option("--from", help=f"{_STARTS}.")] = "live",
        on_slow: Annotated[str, typer.Option(help=f"When the reader is slower than the events: {', '.join(_ON_SLOW)}.")] = "drop_oldest",
        max_rate: Annotated[int | None, typer.Option(min=1, help="Most events a second.", show_default=False)] = None,
        json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
        count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many events.", show_default=False)] = None,
    ) -> None:
        """Print events of the running system as they come, until interrupted."""
        if on_slow not in _ON_SLOW:
            raise BadOptionError(f"--on-slow {on_slow}: expected {', '.join(_ON_SLOW)}")
        wish = Wish(
            topics=types or ["*"],
            filter=filter or [],
            start=parse_start(start),
            on_slow=cast("OnSlow", on_slow),
            max_rate=max_rate,
            count=count,
            json=json,
        )
        try:
            asyncio.run(_until_interrupted(locate(), wish))
        except BrokenPipeError:
            # Whoever read the lines has seen enough; what is still buffered must not fail a second time at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None

    return tail


def parse_start(text: str) -> Start:
    """Return what `--from` means.

    :raises BadOptionError: when it means nothing.
    :raises BadCursorError: when it is no cursor.
    """
    kind, _, rest = text.partition(":")
    if text in {"live", "earliest"}:
        return cast("Start", text)
    if kind == "cursor":
        return Cursor.parse(rest)
    if kind == "slot" and rest.isdecimal():
        return Slot(int(rest))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadOptionError(
            f"--from {text}: expected live, earliest, a time such as 2026-11-22T10:00:00Z, slot:N or cursor:JSON"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


async def _until_interrupted(source: Source, wish: Wish) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    log = logging.getLogger("mev.client")
    log.addHandler(handler := _Notices(console))
    log.propagate = False
    tail = Tail(wish, console)
    task = asyncio.create_task(tail.run(source))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    finally:
        log.removeHandler(handler)
        tail.report()


class _Notices(logging.Handler):
    """What the client has to say, for a person."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"mev: {shown(record.getMessage())}", markup=False, style="yellow")


class Tail:
    """One run of the command: prints what comes, and knows where it is."""

    def __init__(self, wish: Wish, notices: Console, out: BinaryIO | None = None) -> None:
        self._wish = wish
        self._notices = notices
        self._out = out or sys.stdout.buffer
        self._console = Console(highlight=False, markup=False)
        self._events = 0
        self._lost = 0
        self._cursor: Cursor | None = wish.start if isinstance(wish.start, Cursor) else None

    async def run(self, source: Source) -> None:
        """Print until there were as many events as were wished for, or the stream ends."""
        wish = self._wish
        async with Stream(source.url, api_key=source.credential) as stream:
            subscription = stream.subscribe(wish.topics, filter=wish.filter, from_=wish.start, on_slow=wish.on_slow, max_rate=wish.max_rate)
            await subscription.started()
            self._cursor = subscription.cursor
            async for batch in subscription:
                self._tell(batch)
                self._print(batch)
                if self._events == wish.count:
                    return

    def report(self) -> None:
        """Say what was printed, and how to go on from there."""
        if self._cursor is None:
            return
        lost = f", {self._lost} lost" if self._lost else ""
        wish = self._wish
        words = ["mev", "tail", *wish.topics, *(word for condition in wish.filter for word in ("--filter", condition))]
        words += ["--on-slow", wish.on_slow] if wish.on_slow != "drop_oldest" else []
        again = shlex.join([*words, "--from", f"cursor:{self._cursor}"])
        self._notices.print(f"{self._events} events{lost}; to go on from here:", markup=False)
        self._notices.print(again, markup=False, style="dim")

    def _tell(self, batch: Batch) -> None:
        """Say what is missing before a batch."""
        self._lost += batch.lost
        if batch.reset:
            self._say("the log is another one than the cursor's: everything follows from its earliest event")
        for gap in batch.gaps:
            offsets = f"{gap.start} to {gap.stop - 1}" if len(gap) > 1 else str(gap.start)
            self._say(f"{len(gap)} events of {gap.topic} are past retention: partition {gap.partition}, offset {offsets}")
        if batch.dropped:
            behind = f"; {batch.queued} wait" if batch.queued else ""
            self._say(f"{batch.dropped} events left out here, by --on-slow {self._wish.on_slow}{behind}")

    def _say(self, text: str) -> None:
        self._notices.print(f"mev: {text}", markup=False, style="bold red")

    def _print(self, batch: Batch) -> None:
        """Print a batch, or as much of it as is wished for."""
        left = None if self._wish.count is None else self._wish.count - self._events
        whole = left is None or left >= len(batch)
        records, before = islice(batch.records(), left), self._cursor or Cursor()
        steps: list[tuple[str, int, int]] = []
        while chunk := list(islice(records, _CHUNK)):
            steps += [(record.topic, record.partition, record.offset + 1) for record in chunk]
            if self._wish.json:
                self._out.write(b"".join(map(json_line, chunk)))
                self._out.flush()
            else:
                today_ns, cut = now_ns(), self._console.is_terminal
                for record in chunk:
                    self._console.print(line(record, today_ns), no_wrap=True, overflow="ellipsis" if cut else "ignore", crop=cut)
        self._events += len(steps)
        self._cursor = batch.cursor if whole else before.moved(steps)
