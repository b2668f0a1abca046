"""Compile an XGBoost model to a native library with Treelite, TL2cgen and the C compiler."""

import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tl2cgen
import treelite
import xgboost as xgb

from mev.core.errors import MevError
from mev.registry.c_compiler import c_compiler
from mev.registry.errors import UnsupportedModelError
from mev.scoring.manifest import ABI

_UNITS = 4
_TIMEOUT_S = 1800.0
# -O2 takes twice as long as -O1 here, and its code is slower.
_COMPILE = ("-O1", "-std=c99", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-w")
_LINK = ("-shared", "-Wl,-z,relro,-z,now,-z,noexecstack,-Bsymbolic")


def compile_model(model: xgb.Booster, model_id: str) -> bytes:
    """Return a native library that scores as `model` does and carries `model_id`.

    :raises CompilerMissingError: when there is no C compiler.
    :raises UnsupportedModelError: when Treelite or TL2cgen does not support the model.
    :raises MevError: when the compiler fails.
    """
    cc = c_compiler()
    with tempfile.TemporaryDirectory(prefix="mev-compile-") as name:
        folder = Path(name)
        _write_sources(model, folder)
        defines = (
            f"-DMEV_ABI={ABI}",
            f"-DMEV_FEATURES={model.num_features()}",
            f'-DMEV_MODEL_ID="{model_id}"',
        )
        sources = sorted(folder.glob("*.c"))
        with ThreadPoolExecutor(2) as pool:
            list(
                pool.map(
                    lambda source: _run(folder, cc, *_COMPILE, *defines, "-c", source.name), sources
                )
            )
        _run(
            folder,
            cc,
            *_LINK,
            *(source.with_suffix(".o").name for source in sources),
            "-lm",
            "-o",
            "model.so",
        )
        return (folder / "model.so").read_bytes()


def _write_sources(model: xgb.Booster, folder: Path) -> None:
    try:
        tl2cgen.generate_c_code(
            treelite.frontend.from_xgboost(model), folder, {"parallel_comp": _UNITS}
        )
    except (treelite.TreeliteError, tl2cgen.TL2cgenError) as error:
        raise UnsupportedModelError(
            f"the model cannot be turned into C: {str(error).splitlines()[0]}"
        ) from None
    (folder / "shim.c").write_bytes(Path(__file__).with_name("shim.c").read_bytes())


def _run(folder: Path, *command: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MevError(f"{command[0]}: {error}", code="compilation_failed") from None
    if done.returncode != 0:
        raise MevError(
            f"{shlex.join(command)} failed: {done.stderr.strip()[:500]}", code="compilation_failed"
        )
