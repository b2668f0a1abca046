"""Probe of a model file in a separate, confined process: ``python -m mev.scoring.probe``.

The process runs in its own folder with the model and the rows, and gets nothing else.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from mev.core import confine, plain
from mev.core.confine import Confinement
from mev.core.plain import UnsafeFileError
from mev.scoring.compiled import CompiledModel
from mev.scoring.errors import ModelError, ParityError, ProbeError
from mev.scoring.native_engine import open_model
from mev.scoring.predictor import Rows, Scorer, Scores

TOLERANCE = 2e-6
_ROWS, _SCORES = "rows.npy", "scores"
_MAX_DETAIL = 1000
_REFUSED = 3
_TIMEOUT_S = 60.0
_BY_CODE = {kind.code: kind for kind in ModelError.__subclasses__()}


def probe(
    content: bytes,
    form: str,
    rows: Rows,
    *,
    model_id: str,
    confinement: Confinement | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Scores:
    """Return the scores that a model gives `rows` in a separate process.

    `content` is a model file in the form ``mevt`` or ``so``. The process is confined by
    `confinement`, by default the strongest available.

    :raises ProbeError: when the process crashes or hangs.
    :raises ModelError: when it refuses the file, with its reason.
    """
    confinement = confinement or confine.strongest()
    confinement.check()
    with confinement.temporary_folder("mev-probe-") as folder:
        (folder / f"model.{form}").write_bytes(content)
        np.save(folder / _ROWS, rows)
        for path in folder.iterdir():
            confinement.hand_over(path)
        command = [
            sys.executable,
            "-P",
            "-s",
            "-m",
            "mev.scoring.probe",
            f"model.{form}",
            model_id,
            json.dumps(confinement.parameters()),
        ]
        try:
            done = subprocess.run(  # noqa: S603 - our own program
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=folder,
                env=confine.environment(),
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ProbeError(
                f"the {form} file did not score {len(rows)} rows within {timeout_s:g} s"
            ) from None
        if done.returncode == _REFUSED:
            raise _refusal(done.stdout)
        if done.returncode != 0:
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
            raise ProbeError(f"the process that tried the {form} file ended with {how}")
        return _scores(folder, len(rows), form)


def _refusal(said: bytes) -> ModelError:
    """Return the reason for which the process refused its file."""
    try:
        reason = json.loads(said)
        return _BY_CODE.get(str(reason["code"]), ModelError)(str(reason["detail"])[:_MAX_DETAIL])
    except (ValueError, TypeError, KeyError):
        return ProbeError("the process that tried the file refused it without a reason")


def _scores(folder: Path, rows: int, form: str) -> Scores:
    """Return the scores written by the process, as untrusted bytes."""
    try:
        content = plain.read(folder, _SCORES, rows * np.dtype(np.float32).itemsize)
    except (OSError, UnsafeFileError) as error:
        raise ProbeError(
            f"the process that tried the {form} file left no scores: {error}"
        ) from None
    return np.frombuffer(content[: len(content) // 4 * 4], np.float32)


def difference(expected: Scores, found: Scores) -> float:
    """Return the largest difference of a score: absolute up to 1, relative beyond.

    :raises ParityError: when it is more than :data:`TOLERANCE`.
    """
    if expected.shape != found.shape:
        raise ParityError(f"{found.shape} scores where {expected.shape} were expected")
    off = np.abs(expected.astype(np.float64) - found) / np.maximum(1, np.abs(expected))
    worst = float(off.max(initial=0.0))
    if not worst <= TOLERANCE:  # NaN too
        wrong = int(np.count_nonzero(~(off <= TOLERANCE)))
        raise ParityError(
            f"{wrong} of {len(expected)} scores are off by more than {TOLERANCE:g}, the worst by"
            f" {worst:.3g}",
            rows=wrong,
        )
    return worst


def open_scorer(path: Path, *, width: int, model_id: str) -> Scorer:
    """Return the model in `path`, in any form."""
    return (
        CompiledModel(path, width=width, model_id=model_id)
        if path.suffix == ".so"
        else open_model(path.read_bytes())
    )


def main(path: str, model_id: str, parameters: str) -> int:
    """Score, and return the exit code."""
    confine.enter(json.loads(parameters))
    rows = np.load(_ROWS)
    try:
        scorer = open_scorer(Path(confine.OWN_FOLDER, path), width=rows.shape[1], model_id=model_id)
        Path(_SCORES).write_bytes(scorer.predict(rows).astype(np.float32).tobytes())
    except ModelError as error:
        sys.stdout.write(json.dumps({"code": error.code, "detail": error.detail}))
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
