"""Choice of the training device, tested first: without a GPU, XGBoost silently uses the CPU."""

import json
import warnings

import numpy as np
import xgboost as xgb

from mev.training.errors import NoGpuError
from mev.training.spec import Device


def choose(device: Device) -> str:
    """Return ``cpu`` or ``cuda``; the GPU has then trained a test tree.

    :raises NoGpuError: when ``cuda`` was requested and no GPU is usable.
    """
    if device is Device.CPU:
        return "cpu"
    reason = _objection()
    if reason is None:
        return "cuda"
    if device is Device.CUDA:
        raise NoGpuError(f"no GPU can be used: {reason}; take device cpu, or auto")
    return "cpu"


def _objection() -> str | None:
    if not xgb.build_info().get("USE_CUDA"):
        return "the package xgboost-cpu is installed; install xgboost in its place"
    table = np.arange(200, dtype=np.float32).reshape(100, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            booster = xgb.train(
                {"device": "cuda", "verbosity": 0}, xgb.QuantileDMatrix(table, table[:, 0]), 1
            )
    except xgb.core.XGBoostError as error:
        return str(error).splitlines()[0]
    used = json.loads(booster.save_config())["learner"]["generic_param"]["device"]
    return None if used.startswith("cuda") else f"XGBoost took {used} by itself; is there a driver?"
