"""``mev sink``."""

from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from mev import wiring

sink = typer.Typer(help="Look after what is stored.", no_args_is_help=True)


@sink.callback()
def _group() -> None:
    """Look after what is stored."""


@sink.command()
def reconcile(json: Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")] = False) -> None:
    """Prove that every record up to the committed offsets is stored; exit code 1 when one is missing."""
    answer = wiring.ask_api("GET", "/api/sink/reconcile")
    if json:
        typer.echo(answer.text)
    else:
        _print(answer)
    if not answer.json()["complete"]:
        raise typer.Exit(1)


def _print(answer: httpx.Response) -> None:
    columns = ("topic", "partition", "earliest", "latest", "committed", "stored_records", "dead_letters")
    table = Table(*columns, "missing", box=None, header_style="bold", pad_edge=False)
    for item in answer.json()["items"]:
        missing = ", ".join(f"{first}-{last}" for first, last in item["missing"]) or "none"
        table.add_row(*(str(item[name]) for name in columns), missing)
    Console(highlight=False).print(table)
