"""Command ``mev capture``.

The composition root creates it with :func:`make_command`; a dry run of files uses neither the
broker nor the data folder. Exit codes: 0 all read, 1 a service failed, 2 invalid input, 3 slots are
missing. Standard output contains only the events of a dry run.
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
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from mev.capture.files import Document, Reader
from mev.capture.follow import SlotFile, SlotFollower, SlotOutcome, SlotResult
from mev.capture.gaps import Gaps, SlotGap
from mev.capture.model import BadInputError
from mev.capture.output import BrokerOutput, Connect, LineOutput
from mev.capture.rpc import RpcClient
from mev.capture.service import Capture, CaptureSummary
from mev.core.errors import MevError
from mev.core.text import shown, sol

_STANDARD_INPUT = "-"
_SLOTS_ARE_MISSING = 3


def make_command(
    connect: Connect, data_dir: Callable[[], Path], node_url: Callable[[], str | None]
) -> Callable[..., None]:
    """Return the function that Typer registers as ``capture``.

    ``connect`` opens a publisher, ``data_dir`` returns the folder of the position, and ``node_url``
    the default node. Each is called only when needed.
    """

    def capture(
        sources: Annotated[
            list[str] | None,
            typer.Argument(help="More files, or - for standard input.", show_default=False),
        ] = None,
        file: Annotated[
            list[str] | None,
            typer.Option(
                help="Block or transaction file: JSON or JSON lines, plain, gzip or zstd."
            ),
        ] = None,
        rpc: Annotated[
            str | None,
            typer.Option(
                help="URL of a Solana node to follow. With a key in it, set RPC_URL instead.",
                show_default=False,
            ),
        ] = None,
        from_slot: Annotated[
            int | None,
            typer.Option(
                min=0,
                help="First slot; default: where the last run stopped, else the newest.",
                show_default=False,
            ),
        ] = None,
        to_slot: Annotated[
            int | None,
            typer.Option(
                min=0, help="Last slot; without it, following does not end.", show_default=False
            ),
        ] = None,
        commitment: Annotated[str, typer.Option(help="confirmed or finalized.")] = "confirmed",
        requests_per_second: Annotated[
            float, typer.Option(min=0.01, help="Maximum requests per second to the node.")
        ] = 10.0,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run", help="Print the events as JSON lines instead of publishing them."
            ),
        ] = False,
        gaps: Annotated[
            bool,
            typer.Option(
                "--gaps",
                help="Show the slots that could not be read, and read them now; with "
                "--dry-run, only show them.",
            ),
        ] = False,
        fill_from: Annotated[
            str | None,
            typer.Option(
                help="With --gaps: another node to read from, such as an archive.",
                show_default=False,
            ),
        ] = None,
        give_up_after_s: Annotated[
            float,
            typer.Option(
                min=0,
                help="Seconds after which a slot that the node does not return is recorded as "
                "a gap.",
            ),
        ] = 90.0,
    ) -> None:
        """Capture arbitrages, sandwiches and liquidations from Solana blocks and transactions."""
        paths = [*(file or ()), *(sources or ())]
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        try:
            rpc = rpc if rpc is not None or paths else node_url()
            _check_options(paths, rpc, commitment, from_slot if from_slot is not None else to_slot)
            _check_gap_options(
                rpc, from_slot if from_slot is not None else to_slot, fill_from, gaps=gaps
            )
            run = _Run(console, connect, dry_run=dry_run)
            if rpc is None:
                with run.ready():
                    run.files(paths)
                missing = 0
            else:
                folder, name = data_dir() / "capture", _name_of(rpc)
                kept = Gaps(folder / f"{name}.gaps.json" if gaps or not dry_run else None)
                position = None if gaps or dry_run else SlotFile(folder / f"{name}.json")
                client = RpcClient(
                    fill_from or rpc, requests_per_second=requests_per_second, sleep=time.sleep
                )
                with closing(client):
                    follower = SlotFollower(
                        client,
                        commitment=commitment,
                        give_up_after_s=give_up_after_s,
                        report=run.tell,
                        sleep=time.sleep,
                    )
                    if gaps:
                        missing = run.gaps(follower, kept, fill=not dry_run)
                    else:
                        start = (
                            from_slot
                            if from_slot is not None or position is None
                            else position.read()
                        )
                        run.tell_earlier(kept)
                        with run.ready():
                            run.follow(follower.blocks(start, stop_after=to_slot), position, kept)
                        missing = run.summary.missing_slots
        except BrokenPipeError:
            # The reader of the pipe has exited: a flush at exit must not fail a second time.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except MevError as error:
            console.print(f"error: {shown(error.detail)}", markup=False)
            raise typer.Exit(2 if isinstance(error, BadInputError) else 1) from None
        if run.summary.errors:
            raise typer.Exit(2)
        if missing:
            raise typer.Exit(_SLOTS_ARE_MISSING)

    return capture


def _check_options(paths: list[str], rpc: str | None, commitment: str, slot: int | None) -> None:
    if bool(paths) == (rpc is not None):
        raise BadInputError(
            "give either files (--file, or - for standard input) or a node (RPC_URL, or --rpc)"
        )
    if slot is not None and rpc is None:
        raise BadInputError("--from-slot and --to-slot go with a node, not with files")
    if commitment not in ("confirmed", "finalized"):
        raise BadInputError(f"--commitment {commitment}: expected confirmed or finalized")


def _check_gap_options(
    rpc: str | None, slot: int | None, fill_from: str | None, *, gaps: bool
) -> None:
    if gaps and rpc is None:
        raise BadInputError("--gaps goes with a node (RPC_URL, or --rpc), not with files")
    if gaps and slot is not None:
        raise BadInputError(
            "--gaps reads the slots that are missing: leave out --from-slot and --to-slot"
        )
    if fill_from is not None and not gaps:
        raise BadInputError("--fill-from goes with --gaps")


def _name_of(url: str) -> str:
    return sha256(url.encode()).hexdigest()[:16]


class _Run:
    """One run of the command: the capture, its output and its progress display."""

    def __init__(self, console: Console, connect: Connect, *, dry_run: bool) -> None:
        self._console = console
        self._broker = None if dry_run else BrokerOutput(connect, sleep=time.sleep)
        publish = (
            self._broker.publish
            if self._broker is not None
            else LineOutput(sys.stdout.buffer).publish
        )
        self._capture = Capture(publish, report=self._report, note=self.tell)
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
    def summary(self) -> CaptureSummary:
        return self._capture.summary

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Connect; at the end, disconnect and print the summary."""
        if self._broker is not None:
            self._broker.open()
        try:
            with self._progress:
                yield
        finally:
            if self._broker is not None:
                self._broker.close()
            if self.summary.transactions or not self.summary.errors:
                self._console.print(
                    summary_line(
                        self.summary, "published" if self._broker is not None else "printed"
                    ),
                    markup=False,
                )

    def files(self, paths: list[str]) -> None:
        """Capture every document of the files."""
        task = self._progress.add_task("files", total=len(paths))
        reader = Reader()
        try:
            for path in paths:
                self._progress.update(task, description=path)
                found = (
                    reader.stream(sys.stdin.buffer, "standard input")
                    if path == _STANDARD_INPUT
                    else reader.file(Path(path))
                )
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

    def follow(self, blocks: Iterable[SlotResult], position: SlotFile | None, gaps: Gaps) -> None:
        """Capture the blocks in order; advance the position after each block or gap is stored."""
        task = self._progress.add_task("following", total=None)
        with _stopped_by_signal():
            for block in blocks:
                self._take(block, gaps)
                if position is not None:
                    position.write(block.next_slot)
                behind = max(0, block.tip - block.slot)
                events = (
                    self.summary.arbitrages + self.summary.sandwiches + self.summary.liquidations
                )
                described = (
                    f"slot {block.slot}, {behind} behind, {self.summary.missing_slots} "
                    f"missing, {events} events"
                )
                self._progress.update(task, description=described, advance=1)

    def _take(self, block: SlotResult, gaps: Gaps) -> None:
        if block.outcome is SlotOutcome.MISSING:
            gap = SlotGap(block.slot, block.last, block.reason)
            if gaps.add(gap):
                self.tell(f"{gap}; kept for mev capture --gaps")
            self.summary.missing_slots += gap.slots
            return
        if block.value is not None:
            self._capture.document(block.value, source=f"slot {block.slot}")
            self._capture.flush()
        else:
            self.summary.skipped_slots += 1
        gaps.remove(block.slot, block.last)

    def tell_earlier(self, gaps: Gaps) -> None:
        """Report slots that earlier runs left out."""
        if gaps.slots:
            self.tell(
                f"{_count(gaps.slots, 'slot')} missing from earlier runs: mev capture --gaps "
                "shows and reads them"
            )

    def gaps(self, follower: SlotFollower, gaps: Gaps, *, fill: bool) -> int:
        """Show the gaps and, with `fill`, read them; return the number of missing slots."""
        found = tuple(gaps)
        for gap in found:
            self.tell(str(gap))
        if fill and found:
            with self.ready(), _stopped_by_signal():
                for gap in found:
                    for block in follower.blocks(gap.first, stop_after=gap.last):
                        self._take(block, gaps)
        self.tell(f"{_count(gaps.slots, 'slot')} missing" if gaps.slots else "no slot is missing")
        return gaps.slots

    def tell(self, line: str) -> None:
        """Print a line to standard error."""
        self._console.print(shown(line), markup=False)

    def _report(self, error: BadInputError) -> None:
        self.tell(f"error: {error.detail}")


@contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """End following quietly on SIGINT or SIGTERM."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, previous)


def summary_line(summary: CaptureSummary, done: str) -> str:
    """Return the summary of a run; ``done`` is the word for the events' destination."""
    parts = [
        f"{_count(summary.transactions, 'transaction')} read",
        f"{_count(summary.votes, 'vote')} skipped",
        f"{summary.failed} failed skipped",
        _count(summary.arbitrages, "arbitrage"),
        _count(summary.sandwiches, "sandwich", "sandwiches"),
        _count(summary.liquidations, "liquidation"),
        f"{_count(summary.tips, 'Jito tip')} of {sol(summary.tip_lamports)}",
    ]
    if summary.other_tips:
        parts.append(
            f"{_count(summary.other_tips, 'tip')} of {sol(summary.other_tip_lamports)} to "
            "other services"
        )
    if summary.without_owners:
        parts.append(f"{_count(summary.without_owners, 'transaction')} without token owners")
    if summary.without_meta:
        parts.append(f"{summary.without_meta} without metadata")
    if summary.unknown_versions:
        parts.append(
            f"{_count(summary.unknown_versions, 'transaction')} of unknown version passed over"
        )
    if summary.skipped_slots:
        parts.append(f"{_count(summary.skipped_slots, 'slot')} without a block")
    if summary.null_results:
        parts.append(f"{_count(summary.null_results, 'answer')} without a result")
    if summary.missing_slots:
        parts.append(f"{_count(summary.missing_slots, 'slot')} missing")
    if summary.errors:
        parts.append(_count(summary.errors, "bad input"))
    parts.append(f"{_count(summary.published, 'event')} {done}")
    if summary.repeats:
        parts.append(f"{summary.repeats} known already in this run")
    return ", ".join(parts)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
