"""Context passed to the work of a job: spec, folders, progress and cancellation."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from mev.core.clock import now_ns
from mev.core.files import write_atomically
from mev.jobs.errors import CancelledJobError

PROGRESS = "progress.json"
_PAUSE_S = 0.2


class Context:
    """Context of one run of a job, used by the thread that does the work."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        folder: Path,
        output: Path,
        log: logging.Logger,
        cancelled: Callable[[], bool],
    ) -> None:
        self.spec = spec
        self.folder = folder
        """Folder of the job, for state that a later attempt needs."""
        self.output = output
        """Folder of the results, published once the job has succeeded."""
        self.log = log
        self._cancelled = cancelled
        self._told_s = 0.0
        self._told: dict[str, object] = {"done": 0.0, "total": 0.0, "figures": {}}

    def progress(self, done: float, total: float, note: str = "", **figures: object) -> None:
        """Report that `done` of `total` is done, with `figures` to show meanwhile.

        Cheap: reports are rate-limited.
        """
        now = time.monotonic()
        if done < total and now - self._told_s < _PAUSE_S:
            return
        self._told_s = now
        self._told = {"done": done, "total": total, "figures": figures}
        self.remark(note)

    def remark(self, note: str) -> None:
        """Report a note without progress."""
        content = {**self._told, "note": note, "at_ns": now_ns()}
        encoded = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        # not durable: after a crash the job starts over
        write_atomically(self.folder / PROGRESS, encoded, durable=False)

    def is_cancelled(self) -> bool:
        """Return whether the job was cancelled."""
        return self._cancelled()

    def check(self) -> None:
        """Continue only when the job was not cancelled.

        :raises CancelledJobError: otherwise; do not catch it.
        """
        if self._cancelled():
            raise CancelledJobError
