"""Command ``mev doctor``: check the machine, the process and the services."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mev.core.text import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mev.doctor.finding import Finding
    from mev.doctor.run import Area, Target

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "not applicable": "dim"}
_SHORT = {"not applicable": "-"}
_STATE_WIDTH, _NAME_WIDTH, _SHORTEST = 9, 22, 20
_PIPE_WIDTH = 10_000
"""In a pipe each value is one line."""


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check machine, limits, clocks, disk and services; exit code 1 if there is a problem.

    Nothing is changed, and no root is needed. Each warning and problem has the wanted and the
    effective value, what the difference costs, and how to fix it. The last line is the verdict.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # the findings say it
    from mev.doctor.finding import State, verdict
    from mev.doctor.run import run_checks

    areas = run_checks(_target())
    findings = [finding for area in areas for finding in area.findings]
    if json:
        _print_json(areas, verdict(findings))
    else:
        _print(areas, verdict(findings))
    if any(finding.state is State.PROBLEM for finding in findings):
        raise typer.Exit(1)


def _target() -> "Target":
    from mev.doctor.run import Target
    from mev.settings import load_usable
    from mev.store.folder import DataFolder, NotRunningError

    settings, errors = load_usable()
    try:
        runtime = DataFolder(settings.mev_data_dir).read_runtime()
    except NotRunningError:
        return Target(settings=settings, errors=errors, pid=None, api=None)
    return Target(settings=settings, errors=errors, pid=runtime.pid, api=runtime.api)


def _print_json(areas: Sequence["Area"], verdict: str) -> None:
    import orjson

    found = [{"area": area.name, **asdict(finding)} for area in areas for finding in area.findings]
    typer.echo(orjson.dumps({"verdict": verdict, "findings": found}, option=orjson.OPT_INDENT_2))


def _print(areas: Sequence["Area"], verdict: str) -> None:
    from rich.console import Console
    from rich.text import Text

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    for area in areas:
        console.print(Text(area.name, style="bold"))
        names = max([_NAME_WIDTH, *(len(shown(finding.name)) for finding in area.findings)])
        for finding in area.findings:
            _print_finding(console, finding, names)
        console.print()
    console.print(Text(verdict, style="bold"))


def _print_finding(console: "Console", finding: "Finding", name_width: int) -> None:
    from rich.text import Text

    state = finding.state.value
    quiet = "dim" if state == "not applicable" else ""
    _print_wrapped(
        console,
        Text.assemble(
            (f"  {_SHORT.get(state, state):<{_STATE_WIDTH}}", _STYLES[state]),
            (f"{shown(finding.name):<{name_width}}  ", quiet),
        ),
        Text(shown(finding.found), style=quiet),
    )
    if finding.cost:
        for label, text, style in (
            ("wanted", finding.wanted, "dim"),
            ("cost", finding.cost, "dim"),
            ("fix", finding.remedy, ""),
        ):
            label_text = Text(f"{'':<{_STATE_WIDTH + 4}}{label:<8}", style="dim")
            _print_wrapped(console, label_text, Text(shown(text), style=style))


def _print_wrapped(console: "Console", prefix: "Text", text: "Text") -> None:
    """Print `text` behind `prefix`, and further lines of it below its first one."""
    from rich.text import Text

    for line in text.wrap(console, max(_SHORTEST, console.width - prefix.cell_len)):
        line.rstrip()
        console.print(prefix + line, soft_wrap=True)
        prefix = Text(" " * prefix.cell_len)
