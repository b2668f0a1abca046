"""The tools that read deployment files, as one program."""

import fcntl
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services import require

CHECKER = Path(__file__).parent / "checker"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="package")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that runs the checker with arguments and an environment."""
    go = shutil.which("go")
    if go is None:
        require("go is not installed")
    program = tmp_path_factory.mktemp("checker") / "checker"
    # One worker compiles what it imports; the others then take it from Go's cache.
    with (CHECKER / "main.go").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run([go, "build", "-o", program, "."], cwd=CHECKER, check=True)

    def run(
        *arguments: str | Path, check: bool = True, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [program, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run
