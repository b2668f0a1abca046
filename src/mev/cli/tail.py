"""Command ``mev tail``.

The composition root creates it with :func:`make_tail` and passes a function that finds the running
system. Events go to standard output, one per line; everything else, losses above all, to standard
error. Exit codes: 0 ended, also because the reader of a pipe closed it; 1 the system failed; 2 the
request or the configuration must be corrected.
"""

import asyncio
import logging
import os
import shlex
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, BinaryIO, cast

import typer
from rich.console import Console

from mev.cli.event_line import json_line, line
from mev.client.batch import Batch
from mev.client.cursor import Cursor, Resume, Slot, Start
from mev.client.errors import BadOptionError
from mev.client.stream import Stream
from mev.client.subscription_state import OnSlow
from mev.core.clock import now_ns
from mev.core.text import shown

_ON_SLOW = ("drop_oldest", "conflate", "lossless")
_STARTS = "live, earliest, a time such as 2026-11-22T10:00:00Z, slot:N, resume:TOKEN or cursor:JSON"
_CHUNK = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSource:
    """URL of the stream and its credential, which is requested before each connection."""

    url: str
    credential: Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Options of the command."""

    topics: list[str]
    filter: list[str]
    start: Start
    on_slow: OnSlow
    max_rate: int | None = None
    count: int | None = None
    json: bool = False
    snapshot: bool = False


def make_tail(locate: Callable[[], EventSource]) -> Callable[..., None]:
    """Return the function that Typer registers as ``tail``."""

    def tail(
        types: Annotated[
            list[str] | None,
            typer.Argument(
                help="Event types or patterns, such as 'agent_*'; default: all.", show_default=False
            ),
        ] = None,
        filter: Annotated[  # noqa: A002 - the protocol's name
            list[str] | None,
            typer.Option(
                help="Condition, such as 'profit_lamports >= 1000000'; all conditions must hold.",
                show_default=False,
            ),
        ] = None,
        start: Annotated[str, typer.Option("--from", help=f"{_STARTS}.")] = "live",
        on_slow: Annotated[
            str,
            typer.Option(help=f"When the reader is slower than the events: {', '.join(_ON_SLOW)}."),
        ] = "drop_oldest",
        snapshot: Annotated[
            bool,
            typer.Option(
                "--snapshot", help="First the newest event of each key, then what is live."
            ),
        ] = False,
        max_rate: Annotated[
            int | None, typer.Option(min=1, help="Maximum events per second.", show_default=False)
        ] = None,
        json: Annotated[
            bool, typer.Option("--json", help="Print each event as a line of JSON.")
        ] = False,
        count: Annotated[
            int | None,
            typer.Option(
                "--count", "-n", min=1, help="End after this many events.", show_default=False
            ),
        ] = None,
    ) -> None:
        """Print events of the running system as they arrive, until interrupted."""
        if on_slow not in _ON_SLOW:
            raise BadOptionError(f"--on-slow {on_slow}: expected {', '.join(_ON_SLOW)}")
        if snapshot and start != "live":
            raise BadOptionError("--snapshot is of now; leave out --from")
        wish = Wish(
            topics=types or ["*"],
            filter=filter or [],
            start=parse_start(start),
            on_slow=cast("OnSlow", on_slow),
            max_rate=max_rate,
            count=count,
            json=json,
            snapshot=snapshot,
        )
        try:
            asyncio.run(_until_interrupted(locate(), wish))
        except BrokenPipeError:
            # The reader, such as `head`, closed the pipe; flushing the buffer at exit must not fail
            # again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return tail


def parse_start(text: str) -> Start:
    """Return the start position of `--from`.

    :raises BadOptionError: when the text is invalid.
    :raises BadCursorError: when the cursor is invalid.
    """
    kind, _, rest = text.partition(":")
    if text in {"live", "earliest"}:
        return cast("Start", text)
    if kind == "cursor":
        return Cursor.parse(rest)
    if kind == "resume" and rest:
        return Resume(rest)
    if kind == "slot" and rest.isascii() and rest.isdecimal():
        return Slot(int(rest))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadOptionError(f"--from {text}: expected {_STARTS}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


async def _until_interrupted(source: EventSource, wish: Wish) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    log = logging.getLogger("mev.client")
    log.addHandler(handler := _Notices(console))
    log.propagate = False
    tail = TailRun(wish, console)
    task = asyncio.create_task(tail.run(source))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    closed = asyncio.create_task(_output_closed())
    try:
        await asyncio.wait([task, closed], return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if closed.done():
            error = BrokenPipeError()
        if not isinstance(error, BrokenPipeError):
            tail.report()
        if error is not None:
            raise error
    finally:
        closed.cancel()
        log.removeHandler(handler)


async def _output_closed() -> None:
    """Return once the reader of standard output has closed its end, even if nothing is printed.

    Never returns where standard output is not a pipe.
    """
    loop, closed = asyncio.get_running_loop(), asyncio.Event()
    with suppress(OSError, ValueError):  # there may be no standard output
        if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            loop.add_reader(sys.stdout.fileno(), closed.set)
    await closed.wait()


class _Notices(logging.Handler):
    """Log handler that prints the client's messages for people."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"mev: {shown(record.getMessage())}", markup=False, style="yellow")


class _Lines(Console):
    """Standard output, whose closed pipe is an error as of any other file."""

    def on_broken_pipe(self) -> None:
        """Raise it again, instead of ending the process."""
        raise BrokenPipeError


class TailRun:
    """One run of the command: prints events and tracks the cursor."""

    def __init__(self, wish: Wish, notices: Console, out: BinaryIO | None = None) -> None:
        self._wish = wish
        self._notices = notices
        self._out = out or sys.stdout.buffer
        self._console = _Lines(highlight=False, markup=False)
        self._events = 0
        self._lost = 0
        self._cursor: Cursor | None = wish.start if isinstance(wish.start, Cursor) else None
        self._token = ""  # the same place as the server's token, where it is known

    async def run(self, source: EventSource) -> None:
        """Print until the requested number of events is reached, or the stream ends."""
        wish = self._wish
        async with Stream(source.url, api_key=source.credential) as stream:
            subscription = stream.subscribe(
                wish.topics,
                filter=wish.filter,
                from_=wish.start,
                on_slow=wish.on_slow,
                max_rate=wish.max_rate,
                snapshot=wish.snapshot,
            )
            await subscription.started()
            self._cursor, self._token = subscription.cursor, subscription.resume
            async for batch in subscription:
                self._tell(batch)
                self._print(batch)
                if self._events == wish.count:
                    return

    def report(self) -> None:
        """Print the number of events and the command that continues from here."""
        if self._cursor is None:
            return
        lost = f", {self._lost} lost" if self._lost else ""
        wish = self._wish
        words = [
            "mev",
            "tail",
            *wish.topics,
            *(word for condition in wish.filter for word in ("--filter", condition)),
        ]
        words += ["--on-slow", wish.on_slow] if wish.on_slow != "drop_oldest" else []
        words += ["--max-rate", str(wish.max_rate)] if wish.max_rate is not None else []
        words += ["--json"] if wish.json else []
        words += ["--count", str(wish.count)] if wish.count is not None else []
        token = self._token or self._cursor.token()
        again = shlex.join(
            [*words, "--from", f"resume:{token}" if token else f"cursor:{self._cursor}"]
        )
        self._notices.print(f"{self._events} events{lost}; to go on from here:", markup=False)
        self._notices.print(again, markup=False, style="dim")

    def _tell(self, batch: Batch) -> None:
        """Report what is missing before a batch."""
        self._lost += batch.lost
        if batch.reset:
            self._say(
                "the log is another one than the cursor's: everything follows from its "
                "earliest event"
            )
        for gap in batch.gaps:
            offsets = f"{gap.start} to {gap.stop - 1}" if len(gap) > 1 else str(gap.start)
            self._say(
                f"{len(gap)} events of {gap.topic} are past retention: partition "
                f"{gap.partition}, offset {offsets}"
            )
        if batch.dropped:
            behind = f"; {batch.queued} wait" if batch.queued else ""
            self._say(
                f"{batch.dropped} events left out here, by --on-slow {self._wish.on_slow}{behind}"
            )

    def _say(self, text: str) -> None:
        self._notices.print(f"mev: {text}", markup=False, style="bold red")

    def _print(self, batch: Batch) -> None:
        """Print a batch, up to the requested number of events."""
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
                    self._console.print(
                        line(record, today_ns),
                        no_wrap=True,
                        overflow="ellipsis" if cut else "ignore",
                        crop=cut,
                    )
        self._events += len(steps)
        self._cursor, self._token = (
            (batch.cursor, batch.resume) if whole else (before.moved(steps), "")
        )
