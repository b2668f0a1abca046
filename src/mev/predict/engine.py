"""Models in the data-only form, read by ``engine.c``, which is compiled once, when the package is installed."""

import ctypes
import functools
import weakref
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np

from mev.predict.errors import EngineMissingError, MalformedModelError
from mev.predict.mevt import Objective
from mev.predict.predictor import Rows, Scores, check_rows

_ABI = 1
_REASONS = {
    1: "there is not memory enough for it",
    2: "it is shorter than a header",
    3: "it does not begin with MEVT",
    4: "it has a version that this engine does not read",
    5: "it has an objective that this engine does not know",
    6: "its header contradicts itself",
    7: "its length is not what its header says",
    8: "its base score is no finite number, or no probability",
    9: "a tree has no nodes, or lies outside the table",
    10: "a node has a child that is not behind it in its own tree",
    11: "a node asks for a feature that the model does not have",
    12: "a threshold or a leaf is no finite number",
}


class Engine:
    """A data-only model, ready to score; safe for any number of threads.

    :raises MalformedModelError: when `data` is no such model; whatever the bytes are, nothing else happens.
    :raises EngineMissingError: when the engine was not built.
    """

    def __init__(self, data: bytes) -> None:
        self._library = _library()
        reason = ctypes.c_int32()
        self._model = self._library.mevt_open(data, len(data), ctypes.byref(reason))
        if not self._model:
            raise MalformedModelError(f"the model cannot be read: {_REASONS[reason.value]}")
        weakref.finalize(self, self._library.mevt_close, self._model)
        shape = (ctypes.c_uint32 * 4)()
        self._library.mevt_shape(self._model, shape)
        self.objective = Objective(shape[0])
        self.width, self.trees, self.nodes = shape[1], shape[2], shape[3]
        self._predict = self._library.mevt_predict

    def predict(self, rows: Rows, *, margin: bool = False) -> Scores:
        """Return a score for each of `rows`, a float32 table; NaN is a missing feature. `margin` leaves out the logistic function.

        :raises WrongRowsError: when the rows are of another width or type.
        """
        rows = check_rows(rows, self.width)
        scores = np.empty(len(rows), np.float32)
        self._predict(self._model, rows.ctypes.data, len(rows), self.width, margin, scores.ctypes.data)
        return scores


@functools.cache
def _library() -> ctypes.CDLL:
    folder = Path(__file__).parent
    path = next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_engine{suffix}").exists()), None)
    if path is None:
        raise EngineMissingError(
            "the engine was not built when mev was installed; install a C compiler (gcc, libc6-dev) and run tools/install"
        )
    library = ctypes.CDLL(str(path))
    if library.mevt_abi() != _ABI:
        raise EngineMissingError("the engine was built from another version of mev; run tools/install")
    library.mevt_open.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int32))
    library.mevt_open.restype = ctypes.c_void_p
    library.mevt_close.argtypes = (ctypes.c_void_p,)
    library.mevt_close.restype = None
    library.mevt_shape.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32))
    library.mevt_shape.restype = None
    library.mevt_predict.argtypes = (
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
        *(ctypes.c_size_t, ctypes.c_int32, ctypes.c_void_p),
    )
    return library
