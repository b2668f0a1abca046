"""From a model of XGBoost to a library of native code: Treelite reads it, TL2cgen writes C, the compiler of this machine does the rest."""

import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tl2cgen
import treelite
import xgboost as xgb

from mev.models.errors import CompilationError, CompilerMissingError, UnsupportedModelError
from mev.predict.manifest import ABI

_UNITS = 4
_TIMEOUT_S = 1800.0
# The optimiser gains nothing beyond -O1 here: -O2 takes twice the time and its code is slower.
_COMPILE = ("-O1", "-std=c99", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-w")
_LINK = ("-shared", "-Wl,-z,relro,-z,now,-z,noexecstack,-Bsymbolic")


def compile_model(model: xgb.Booster, model_id: str) -> bytes:
    """Return a library that scores as `model` does and says that it is `model_id`.

    :raises CompilerMissingError: when there is no C compiler.
    :raises UnsupportedModelError: when Treelite or TL2cgen does not know such a model.
    :raises CompilationError: when the compiler fails.
    """
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise CompilerMissingError("there is no C compiler; install gcc and libc6-dev, or use the data-only form")
    with tempfile.TemporaryDirectory(prefix="mev-compile-") as name:
        folder = Path(name)
        _write_sources(model, folder)
        defines = (f"-DMEV_ABI={ABI}", f"-DMEV_FEATURES={model.num_features()}", f'-DMEV_MODEL_ID="{model_id}"')
        sources = sorted(folder.glob("*.c"))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda source: _run(folder, compiler, *_COMPILE, *defines, "-c", source.name), sources))
        _run(folder, compiler, *_LINK, *(source.with_suffix(".o").name for source in sources), "-lm", "-o", "model.so")
        return (folder / "model.so").read_bytes()


def _write_sources(model: xgb.Booster, folder: Path) -> None:
    try:
        tl2cgen.generate_c_code(treelite.frontend.from_xgboost(model), folder, {"parallel_comp": _UNITS})
    except (treelite.TreeliteError, tl2cgen.TL2cgenError) as error:
        raise UnsupportedModelError(f"the model cannot be turned into C: {str(error).splitlines()[0]}") from None
    shutil.copy(Path(__file__).with_name("shim.c"), folder)


def _run(folder: Path, *command: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilationError(f"{command[0]}: {error}") from None
    if done.returncode != 0:
        raise CompilationError(f"{shlex.join(command)} failed: {done.stderr.strip()[:500]}")
