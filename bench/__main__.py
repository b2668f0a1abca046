"""``python -m bench``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import report, runner
from bench.harness import Row, RowResult
from bench.rows import ROWS

_FILE_WIDTH = 120
_BLOCK = Path(__file__).parents[2] / "shared" / "data" / "solana" / "block-254170887.json.gz"


def main(
    rows: Annotated[
        str,
        typer.Argument(
            help="Rows to measure, separated by commas; all without it.", show_default=False
        ),
    ] = "",
    rounds: Annotated[
        int, typer.Option(min=2, help="Rounds that count; each measures both sides.")
    ] = 7,
    block: Annotated[
        Path, typer.Option(help="A block as getBlock gives it, for the capture; may be gzipped.")
    ] = _BLOCK,
    json: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Write the figures of every round to this file."),
    ] = None,
    list_rows: Annotated[
        bool, typer.Option("--list", help="Say what there is to measure, and stop.")
    ] = False,
) -> None:
    """Measure the hot paths against the raw libraries, in alternating rounds."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    chosen = _choose(rows)
    if list_rows:
        report.print_rows(console, chosen)
        return
    results = _run(chosen, rounds, block)
    report.print_results(console, results)
    if json:
        report.write_json(json, results)


def _choose(names: str) -> list[Row]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in ROWS]:
        raise typer.BadParameter(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return [ROWS[name] for name in wanted or ROWS]


def _run(rows: list[Row], rounds: int, block: Path) -> list[RowResult]:
    results = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        for number, row in enumerate(rows, 1):
            progress.update(task, description=f"{row.name} ({number} of {len(rows)})")
            results.append(runner.run(row, rounds=rounds, block=block))
    return results


if __name__ == "__main__":
    typer.run(main)
