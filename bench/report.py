"""Results for people, as a table, and for programs, as JSON."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.harness import Row, RowResult, middle_half


def print_rows(console: Console, rows: Iterable[Row]) -> None:
    """Print what there is to measure."""
    table = Table(
        "row",
        "our side",
        "baseline",
        "clock",
        "expected",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for row in rows:
        table.add_row(row.name, row.ours, row.baseline, row.clock.value, _expected(row))
    console.print(table)


def print_results(console: Console, results: Sequence[RowResult]) -> None:
    """Print the figures and notes of each row, or the reason why it was skipped."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("row", "unit", "clock"):
        table.add_column(name, no_wrap=True)
    for name in ("baseline", "ours", "ratio", "middle half", "expected"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result))
    console.print(table)
    for result in results:
        for line in _lines(result):
            console.print(f"{result.row.name}{line}")


def write_json(path: Path, results: Iterable[RowResult]) -> None:
    """Write every figure of every round."""
    path.write_text(json.dumps([_document(result) for result in results], indent=2) + "\n")


def _cells(result: RowResult) -> list[str]:
    row, figures = result.row, result.figures
    if figures is None:
        return [row.name, row.unit, row.clock.value, "-", "-", "-", "-", _expected(row)]
    low, high = figures.quartiles
    return [
        row.name,
        row.unit,
        row.clock.value,
        f"{statistics.median(figures.baseline):,.0f}",
        f"{statistics.median(figures.ours):,.0f}",
        f"{figures.ratio:.2f}",
        f"{low:.2f} to {high:.2f}",
        _judged(result),
    ]


def _lines(result: RowResult) -> list[str]:
    figures = result.figures
    if figures is None:
        return [f" was not measured: {result.reason}"]
    lines = [f": {note}" for note in figures.notes]
    if result.row.expected_cost_us is not None:
        low, high = middle_half(figures.costs_us)
        lines.insert(
            0,
            f": {statistics.median(figures.costs_us):.1f} us more than the baseline (middle half"
            f" {low:.1f} to {high:.1f})",
        )
    return lines


def _expected(row: Row) -> str:
    parts = []
    if row.expected_ratio is not None:
        parts.append(f">= {row.expected_ratio:.2f}")
    if row.expected_rate is not None:
        parts.append(f">= {row.expected_rate:,.0f}")
    if row.expected_cost_us is not None:
        parts.append(f"<= {row.expected_cost_us:g} us more")
    if row.expected_ms is not None:
        parts.append(f"<= {row.expected_ms:g} ms")
    return ", ".join(parts)


def _judged(result: RowResult) -> str:
    expected = _expected(result.row)
    if result.as_expected is None:
        return expected
    return f"[green]{expected}  yes[/]" if result.as_expected else f"[red]{expected}   no[/]"


def _document(result: RowResult) -> dict[str, object]:
    row, figures = result.row, result.figures
    document: dict[str, object] = {
        "row": row.name,
        "unit": row.unit,
        "clock": row.clock.value,
        "expected_ratio": row.expected_ratio,
        "expected_rate": row.expected_rate,
        "expected_cost_us": row.expected_cost_us,
        "expected_ms": row.expected_ms,
    }
    if figures is None:
        return {**document, "not_measured": result.reason}
    return {
        **document,
        "baseline": statistics.median(figures.baseline),
        "ours": statistics.median(figures.ours),
        "ratio": figures.ratio,
        "ratio_quartiles": figures.quartiles,
        "cost_us": statistics.median(figures.costs_us),
        "notes": figures.notes,
        "as_expected": result.as_expected,
        "rounds": {"baseline": figures.baseline, "ours": figures.ours, "ratio": figures.ratios},
    }
