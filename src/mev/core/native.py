"""State of the native module ``mev._native``, which is compiled from ``native/`` at installation.

Everything works without it, slower. ``MEV_NATIVE=0`` in the environment turns it off.
"""

import functools
import os
from importlib import import_module

INTERFACE = 4
"""Number of the interface that this version of the package uses."""
_INSTEAD = "Python code runs instead, slower"
_OFF = frozenset({"0", "false", "off", "no", "f", "n"})


def is_used() -> bool:
    """Return whether the native module is installed and not turned off."""
    return not _is_off() and not _missing()


def describe() -> str:
    """Return in one line whether the native module is used, and why not."""
    if _is_off():
        return f"not used: MEV_NATIVE turns it off; {_INSTEAD}"
    if reason := _missing():
        return f"not used: {reason}; {_INSTEAD}"
    return "used"


def _is_off() -> bool:
    return os.environ.get("MEV_NATIVE", "").strip().lower() in _OFF


@functools.cache
def _missing() -> str:
    """Return the reason why the native module cannot be used, or nothing."""
    try:
        found = import_module("mev._native").INTERFACE
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            return "it was not built; install cargo, then run tools/install"
        return f"it cannot be loaded: {str(error)[:200]}"
    except AttributeError:
        found = 0
    if found != INTERFACE:
        return "it is of another version; run tools/install"
    return ""
