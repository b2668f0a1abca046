"""Running rows, each in a process of its own: no row meets the threads, the memory or the engine of another."""

import gc
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from bench.children import Pipe, child
from bench.harness import Figures, Result, Row, Setting, SkippedError, measure
from bench.rows import ROWS


def run(row: Row, *, rounds: int, block: Path) -> Result:
    """Measure `row` in a process and a folder that are gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="mev-bench-"))
    try:
        with child(_measure, row.name, rounds, Setting(scratch=scratch, block=block)) as pipe:
            return _result(row, pipe)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _result(row: Row, pipe: Pipe) -> Result:
    try:
        answer: Figures | str = pipe.recv()
    except EOFError:
        return Result(row, reason="its process failed, as printed above")
    return Result(row, reason=answer) if isinstance(answer, str) else Result(row, answer)


def _measure(pipe: Pipe, name: str, rounds: int, setting: Setting) -> None:
    row = ROWS[name]
    try:
        with row.open(setting) as sides:
            # Both sides make garbage; how long collecting it takes should not depend on what the other rows import.
            gc.collect()
            gc.freeze()
            answer: Figures | str = measure(sides, rounds)
    except SkippedError as reason:
        answer = str(reason)
    with suppress(BrokenPipeError):  # the parent was interrupted
        pipe.send(answer)
