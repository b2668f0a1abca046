"""The command ``mev capture``.

The composition root makes it with :func:`make_command`, which is told how to reach the broker and where the data folder
is; neither is looked for by a dry run of files. Exit codes: 0 all read, 1 a service failed, 2 something was wrong with
the input. Only events of a dry run go to standard output.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mev.capture.files import Document, Reader
from mev.capture.follow import Block, Follower, Position
from mev.capture.model import BadInputError
from mev.capture.output import BrokerOutput, Connect, LineOutput
from mev.capture.rpc import Client
from mev.capture.service import Capture, Summary
from mev.core.errors import MevError
from mev.core.text import shown

_STANDARD_INPUT = "-"


def make_command(connect: Connect, data_dir: Callable[[], Path], node_url: Callable[[], str | None]) -> Callable[..., None]:
    """Return the function that Typer registers as ``capture``.

    ``connect`` opens a publisher, ``data_dir`` names the folder the position is kept in and ``node_url`` the node that is followed when
    neither files nor a node are given; each is called only when it is needed.
    """

    def capture(
        sources: Annotated[list[str] | None, typer.Argument(help="More files, or - for standard input.", show_default=False)] = None,
        file: Annotated[list[str] | None, typer.Option(help="Block or transaction file: JSON or JSON lines, plain, gzip or zstd.")] = None,
        rpc: Annotated[
            str | None, typer.Option(help="URL of a Solana node to follow. With a key in it, set RPC_URL instead.", show_default=False)
        ] = None,
        from_slot: Annotated[
            int | None, typer.Option(min=0, help="First slot; else where the last run stopped, else the newest.", show_default=False)
        ] = None,
        to_slot: Annotated[int | None, typer.Option(min=0, help="Last slot; follows for ever without it.", show_default=False)] = None,
        commitment: Annotated[str, typer.Option(help="confirmed or finalized.")] = "confirmed",
        requests_per_second: Annotated[float, typer.Option(min=0.01, help="Most requests a second to the node.")] = 10.0,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the events as JSON lines instead of publishing them.")] = False,
    ) -> None:
        """Capture arbitrages, sandwiches and liquidations from Solana blocks and transactions."""
        paths = [*(file or ()), *(sources or ())]
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        try:
            rpc = rpc if rpc is not None or paths else node_url()
            _check_options(paths, rpc, commitment, from_slot if from_slot is not None else to_slot)
            run = _Run(console, connect, dry_run=dry_run)
            if rpc is None:
                with run.ready():
                    run.files(paths)
            else:
                position = None if dry_run else Position(data_dir() / "capture" / f"{_name_of(rpc)}.json")
                start = from_slot if from_slot is not None or position is None else position.read()
                with closing(Client(rpc, requests_per_second=requests_per_second)) as client, run.ready():
                    run.follow(Follower(client, commitment=commitment).blocks(start, stop_after=to_slot), position)
        except BrokenPipeError:
            # Whoever read the lines has seen enough; what is still buffered must not fail a second time at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except MevError as error:
            console.print(f"error: {shown(error.detail)}", markup=False)
            raise typer.Exit(2 if isinstance(error, BadInputError) else 1) from None
        if run.summary.errors:
            raise typer.Exit(2)

    return capture


def _check_options(paths: list[str], rpc: str | None, commitment: str, slot: int | None) -> None:
    if bool(paths) == (rpc is not None):
        raise BadInputError("give either files (--file, or - for standard input) or a node (RPC_URL, or --rpc)")
    if slot is not None and rpc is None:
        raise BadInputError("--from-slot and --to-slot go with a node, not with files")
    if commitment not in ("confirmed", "finalized"):
        raise BadInputError(f"--commitment {commitment}: expected confirmed or finalized")


def _name_of(url: str) -> str:
    return sha256(url.encode()).hexdigest()[:16]


class _Run:
    """One run of the command: the capture, where its events go, and what the person sees."""

    def __init__(self, console: Console, connect: Connect, *, dry_run: bool) -> None:
        self._console = console
        self._broker = None if dry_run else BrokerOutput(connect, sleep=time.sleep)
        publish = self._broker.publish if self._broker is not None else LineOutput(sys.stdout.buffer).publish
        self._capture = Capture(publish, report=self._report)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    @property
    def summary(self) -> Summary:
        return self._capture.summary

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Connect, and whatever happens disconnect and say what was done."""
        if self._broker is not None:
            self._broker.open()
        try:
            with self._progress:
                yield
        finally:
            if self._broker is not None:
                self._broker.close()
            if self.summary.transactions or not self.summary.errors:
                self._console.print(summary_line(self.summary, "published" if self._broker is not None else "printed"), markup=False)

    def files(self, paths: list[str]) -> None:
        """Capture every document of the files."""
        task = self._progress.add_task("files", total=len(paths))
        reader = Reader()
        try:
            for path in paths:
                self._progress.update(task, description=path)
                found = reader.stream(sys.stdin.buffer, "standard input") if path == _STANDARD_INPUT else reader.file(Path(path))
                for each in found:
                    self._document(each)
                self._progress.advance(task)
        finally:
            self._capture.close()

    def _document(self, found: Document | BadInputError) -> None:
        if isinstance(found, BadInputError):
            self._capture.bad(found)
        else:
            self._capture.document(found.value, source=found.place, slot=found.slot)

    def follow(self, blocks: Iterable[Block], position: Position | None) -> None:
        """Capture block after block; the position moves on once a block's events are safe."""
        task = self._progress.add_task("following", total=None)
        with _stopped_by_signal():
            for block in blocks:
                if block.value is not None:
                    self._capture.document(block.value, source=f"slot {block.slot}")
                    self._capture.flush()
                if position is not None:
                    position.write(block.slot + 1)
                done = self.summary.arbitrages + self.summary.sandwiches + self.summary.liquidations
                self._progress.update(task, description=f"slot {block.slot}, {block.tip - block.slot} behind, {done} events", advance=1)

    def _report(self, error: BadInputError) -> None:
        self._console.print(f"error: {shown(error.detail)}", markup=False)


@contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """End following quietly on an interrupt or a request to terminate: there is no other end."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, previous)


def summary_line(summary: Summary, done: str) -> str:
    """Return the end-of-run summary; ``done`` is what became of the events."""
    parts = [
        f"{_count(summary.transactions, 'transaction')} read",
        f"{_count(summary.votes, 'vote')} skipped",
        f"{summary.failed} failed skipped",
        _count(summary.arbitrages, "arbitrage"),
        _count(summary.sandwiches, "sandwich", "sandwiches"),
        _count(summary.liquidations, "liquidation"),
        f"{_count(summary.tips, 'Jito tip')} of {_count(summary.tip_lamports, 'lamport')}",
    ]
    if summary.without_meta:
        parts.append(f"{summary.without_meta} without metadata")
    if summary.errors:
        parts.append(_count(summary.errors, "bad input"))
    parts.append(f"{_count(summary.published, 'event')} {done}")
    if summary.repeats:
        parts.append(f"{summary.repeats} known already in this run")
    return ", ".join(parts)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
