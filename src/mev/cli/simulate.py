"""Command ``mev simulate``."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mev.core.clock import now_ns
from mev.service_clients import connect
from mev.simulate.model import EPOCH_NS, Market
from mev.simulate.service import publish
from mev.wire.registry import EVENT_TYPES
from mev.wire.render import renderer


def simulate(
    rate: Annotated[
        float, typer.Option(min=0.001, help="Opportunities per second of simulated time.")
    ] = 100.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.")] = 1,
    duration: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds of simulated time; without it or --count, until interrupted."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Number of opportunities.")] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Publish as fast as possible, not in real time.")
    ] = False,
    live: Annotated[
        bool,
        typer.Option("--live", help="Use the current time in events; runs then differ."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the events as JSON lines; needs no running system."),
    ] = False,
) -> None:
    """Publish simulated opportunities, bundles and ticks to the running system."""
    market = Market(seed, rate, now_ns() if live else EPOCH_NS)
    opportunities = (
        count if count is not None else round(rate * duration) if duration is not None else None
    )
    if dry_run:
        _print(market, opportunities)
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("simulated opportunities"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        connect() as publisher,
        Progress(*columns, console=console) as progress,
    ):
        task = progress.add_task("", total=opportunities)
        publish(
            market,
            publisher,
            opportunities,
            paced=not fast,
            progress=lambda done: progress.update(task, completed=done),
        )


def _print(market: Market, opportunities: int | None) -> None:
    write = {event.descriptor.full_name: renderer(event) for event in EVENT_TYPES.values()}
    for number, messages in enumerate(market):
        if number == opportunities:
            return
        for message in messages:
            sys.stdout.buffer.write(
                write[message.DESCRIPTOR.full_name](message.SerializeToString()) + b"\n"
            )
