"""What the work of a job is given: what to do, where to put it, how to say how far it is, whether it is still wanted."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from mev.core.clock import now_ns
from mev.jobs.errors import CancelledJobError

PROGRESS = "progress.json"
_PAUSE_S = 0.2


class Context:
    """One run of a job. Called by the thread that does the work."""

    def __init__(self, spec: Mapping[str, Any], folder: Path, output: Path, log: logging.Logger, cancelled: Callable[[], bool]) -> None:
        self.spec = spec
        self.folder = folder
        """The job's own: what a later attempt may need."""
        self.output = output
        """What others get, once the job has succeeded."""
        self.log = log
        self._cancelled = cancelled
        self._told_s = 0.0
        self._told: dict[str, object] = {"done": 0.0, "total": 0.0, "figures": {}}

    def progress(self, done: float, total: float, note: str = "", **figures: object) -> None:
        """Say that `done` of `total` is done; `figures` are numbers worth seeing meanwhile. Cheap: most calls write nothing."""
        now = time.monotonic()
        if done < total and now - self._told_s < _PAUSE_S:
            return
        self._told_s = now
        self._told = {"done": done, "total": total, "figures": figures}
        self.remark(note)

    def remark(self, note: str) -> None:
        """Say what there is to say about a work that is no further than before."""
        content = {**self._told, "note": note, "at_ns": now_ns()}
        temporary = self.folder / f".{PROGRESS}.{os.getpid()}"
        temporary.write_bytes(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
        temporary.replace(self.folder / PROGRESS)  # not made durable: after a crash it starts again anyway

    def is_cancelled(self) -> bool:
        """Say whether the work is not wanted any longer."""
        return self._cancelled()

    def check(self) -> None:
        """Go on only when the work is still wanted.

        :raises CancelledJobError: otherwise; let it through.
        """
        if self._cancelled():
            raise CancelledJobError
