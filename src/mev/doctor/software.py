"""Checks of the installation: settings, Python, native module, compilers."""

import platform
import shutil

from mev import __version__
from mev.core import native
from mev.doctor.finding import Finding, State, judged, not_applicable


def check_settings(errors: str) -> Finding:
    """Check that the settings are valid; `errors` says what is wrong."""
    return judged(
        "Settings",
        good=not errors,
        wanted="valid",
        found=errors or f"valid; mev {__version__}, Python {platform.python_version()}",
        cost="`mev up` does not start; defaults are used for the checks below",
        remedy="correct the variables; `mev config show` lists all",
        otherwise=State.PROBLEM,
    )


def check_native() -> Finding:
    """Check that the native module encodes events and scores models."""
    return judged(
        "Native module",
        good=native.is_used(),
        wanted="used",
        found=native.describe(),
        cost="events need more CPU time, and scoring takes 3 to 8 times longer",
        remedy="unset MEV_NATIVE; if it was not built, install cargo and run tools/install",
    )


def check_compilers() -> list[Finding]:
    """Check that the compilers for models and for the native module are there."""
    return [
        judged(
            "C compiler",
            good=bool(found := shutil.which("gcc") or shutil.which("cc")),
            wanted="gcc or cc",
            found=found or "none",
            cost="models cannot be compiled to shared libraries",
            remedy="install gcc and libc6-dev",
        ),
        _check_cargo(),
    ]


def _check_cargo() -> Finding:
    if found := shutil.which("cargo"):
        return Finding(name="Rust compiler", state=State.OK, wanted="cargo", found=found)
    if native.is_used():
        return not_applicable("Rust compiler", "the native module is already built")
    return judged(
        "Rust compiler",
        good=False,
        wanted="cargo",
        found="none",
        cost="the native module cannot be built",
        remedy="install cargo, then run tools/install",
    )
