"""Command ``mev sink``."""

from typing import Annotated

import httpx
import typer

from mev.cli import api
from mev.cli.tables import print_table

sink = typer.Typer(help="Check stored records.", no_args_is_help=True)


@sink.callback()
def _group() -> None:
    """Check stored records."""


@sink.command()
def reconcile(
    json: Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")] = False,
) -> None:
    """Check that every record up to the committed offsets is stored.

    Exit code 1 when one is missing.
    """
    answer = api.ask_api("GET", "/api/sink/reconcile")
    if json:
        typer.echo(answer.text)
    else:
        _print(answer)
    if not answer.json()["complete"]:
        raise typer.Exit(1)


def _print(answer: httpx.Response) -> None:
    columns = (
        "topic",
        "partition",
        "earliest",
        "latest",
        "committed",
        "stored_records",
        "dead_letters",
    )
    rows = [
        (
            *(item[name] for name in columns),
            ", ".join(f"{first}-{last}" for first, last in item["missing"]) or "none",
        )
        for item in answer.json()["items"]
        if item["latest"]
    ]
    print_table((*columns, "missing"), rows)
