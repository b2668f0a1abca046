"""Find the C compiler, without the libraries that write C code: their import takes long."""

import shutil

from mev.registry.errors import CompilerMissingError

_NAMES = ("cc", "gcc", "clang")


def c_compiler() -> str:
    """Return the path of the C compiler.

    :raises CompilerMissingError: when there is none.
    """
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise CompilerMissingError(
            "there is no C compiler; install gcc and libc6-dev, or use the data-only form"
        )
    return found
