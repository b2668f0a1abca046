"""Execution of rows in separate processes, so that none shares threads, memory or engine."""

import gc
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from bench.children import Pipe, child
from bench.harness import Row, RowFigures, RowInput, RowResult, SkippedError, measure
from bench.rows import ROWS


def run(row: Row, *, rounds: int, block: Path) -> RowResult:
    """Measure `row` in a process and a folder that are gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="mev-bench-"))
    try:
        with child(_measure, row.name, rounds, RowInput(scratch=scratch, block=block)) as pipe:
            return _result(row, pipe)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _result(row: Row, pipe: Pipe) -> RowResult:
    try:
        answer: RowFigures | str = pipe.recv()
    except EOFError:
        return RowResult(row, reason="its process failed, as printed above")
    return RowResult(row, reason=answer) if isinstance(answer, str) else RowResult(row, answer)


def _measure(pipe: Pipe, name: str, rounds: int, setting: RowInput) -> None:
    row = ROWS[name]
    try:
        with row.open(setting) as sides:
            # Both sides make garbage; the cost of collecting it must not depend on other rows'
            # imports.
            gc.collect()
            gc.freeze()
            answer: RowFigures | str = measure(sides, rounds)
    except SkippedError as reason:
        answer = str(reason)
    with suppress(BrokenPipeError):  # the parent was interrupted
        pipe.send(answer)
