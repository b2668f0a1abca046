"""Compiled models. Opening one runs its code: verify signature and digest first."""

import ctypes
import os
from pathlib import Path

import numpy as np

from mev.scoring.errors import MalformedModelError, WrongAbiError
from mev.scoring.manifest import ABI
from mev.scoring.predictor import Rows, Scores, check_rows


class CompiledModel:
    """A compiled model; thread-safe. It is never unloaded, because a thread may still use it.

    :raises MalformedModelError: when the file cannot be loaded. A truncated file can crash the
        process; probe it in another process first.
    :raises WrongAbiError: when its ABI, width or model id differs.
    """

    def __init__(self, path: Path, *, width: int, model_id: str) -> None:
        self.width = width
        try:
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as error:
            raise MalformedModelError(f"{path.name} cannot be loaded: {error}") from None
        try:
            _check(library, width, model_id)
            self._predict = library.mev_predict
        except AttributeError as error:
            raise WrongAbiError(f"{path.name} is no model of this interface: {error}") from None
        self._predict.argtypes = (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_void_p,
        )

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        """Return a score for each of `rows`, a float32 table; NaN is a missing feature.

        :raises WrongRowsError: when the rows have another width or type.
        """
        rows = check_rows(rows, self.width)
        scores = np.empty(len(rows), np.float32)
        if self._predict(rows.ctypes.data, len(rows), self.width, margin, scores.ctypes.data) != 0:
            raise MemoryError
        return scores


def _check(library: ctypes.CDLL, width: int, model_id: str) -> None:
    library.mev_model_id.restype = ctypes.c_char_p
    found = (
        library.mev_abi_version(),
        library.mev_num_feature(),
        library.mev_model_id().decode("ascii", "replace"),
    )
    if found != (ABI, width, model_id):
        raise WrongAbiError(
            f"the file says interface {found[0]}, {found[1]} features, model {found[2]}; not {ABI},"
            f" {width}, {model_id}"
        )
