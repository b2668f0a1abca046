"""Trying a file of a model in a process that may die: ``python -I -m mev.predict.probe`` scores rows with it and ends."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mev.predict.engine import Engine
from mev.predict.errors import ModelError, ParityError, ProbeError
from mev.predict.native import Native
from mev.predict.predictor import Rows, Scorer, Scores

TOLERANCE = 2e-6
_REFUSED = 3
_TIMEOUT_S = 60.0
_BY_CODE = {kind.code: kind for kind in ModelError.__subclasses__()}


def probe(path: Path, rows: Rows, *, model_id: str, timeout_s: float = _TIMEOUT_S) -> Scores:
    """Return the scores that the model in `path`, a ``.mevt`` or a ``.so``, gives `rows` in another process.

    :raises ProbeError: when that process dies or hangs.
    :raises ModelError: when it refuses the file, with its reason.
    """
    with tempfile.TemporaryDirectory(prefix="mev-probe-") as folder:
        table, scores = Path(folder, "rows.npy"), Path(folder, "scores.npy")
        np.save(table, rows)
        command = [sys.executable, "-I", "-m", "mev.predict.probe", str(path), model_id, str(table), str(scores)]
        try:
            done = subprocess.run(  # noqa: S603 - our own program
                command, stdin=subprocess.DEVNULL, capture_output=True, env=_environment(), timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise ProbeError(f"{path.name} did not score {len(rows)} rows within {timeout_s:g} s") from None
        if done.returncode == _REFUSED:
            reason = json.loads(done.stdout)
            raise _BY_CODE.get(reason["code"], ModelError)(reason["detail"])
        if done.returncode != 0:
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
            raise ProbeError(f"the process that tried {path.name} ended with {how}")
        result: Scores = np.load(scores)
        return result


def _environment() -> dict[str, str]:
    """Return what the process needs to start: native code is tried there, and the environment of this one may hold secrets."""
    return {"LC_ALL": "C.UTF-8"} | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def difference(expected: Scores, found: Scores) -> float:
    """Return by how much a score is off at most: absolutely for numbers up to 1, relatively beyond.

    :raises ParityError: when it is more than :data:`TOLERANCE`.
    """
    if expected.shape != found.shape:
        raise ParityError(f"{found.shape} scores where {expected.shape} were expected")
    off = np.abs(expected.astype(np.float64) - found) / np.maximum(1, np.abs(expected))
    worst = float(off.max(initial=0.0))
    if not worst <= TOLERANCE:  # NaN too
        wrong = int(np.count_nonzero(~(off <= TOLERANCE)))
        raise ParityError(f"{wrong} of {len(expected)} scores are off by more than {TOLERANCE:g}, the worst by {worst:.3g}", rows=wrong)
    return worst


def open_scorer(path: Path, *, width: int, model_id: str) -> Scorer:
    """Return the model in `path`, of whatever form."""
    return Native(path, width=width, model_id=model_id) if path.suffix == ".so" else Engine(path.read_bytes())


def main(path: str, model_id: str, table: str, scores: str) -> int:
    """Score, and return the exit code."""
    rows = np.load(table)
    try:
        np.save(scores, open_scorer(Path(path), width=rows.shape[1], model_id=model_id).predict(rows))
    except ModelError as error:
        sys.stdout.write(json.dumps({"code": error.code, "detail": error.detail}))
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
