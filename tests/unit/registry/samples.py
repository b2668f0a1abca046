"""Models of the simulated market's features, keys that sign them, and a registry that holds one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xgboost as xgb

from mev.crypto.keys import SigningKey
from mev.crypto.trust import COMMAND, TrustStore
from mev.registry.register import Trained
from mev.registry.registry import Registry
from mev.scoring.manifest import Manifest
from mev.scoring.predictor import Rows
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.envelope_pb2 import KeySet

KEY = SigningKey("trainer", bytes([7]) * 32)
STRANGER = SigningKey("stranger", bytes([8]) * 32)
TRUST = TrustStore(KeySet(epoch=1, keys=[KEY.trusted_for(COMMAND)]))
WIDTH = len(OPPORTUNITY.names)


@dataclass(frozen=True)
class Made:
    """A registered model, and what it was made from."""

    registry: Registry
    manifest: Manifest
    trained: Trained

    @property
    def folder(self) -> Path:
        return self.registry.folder

    def path(self, form: str) -> Path:
        return self.folder / f"{self.manifest.digest(form)}.{form}"


def rows(count: int, seed: int) -> Rows:
    draw = np.random.default_rng(seed)
    table = draw.normal(size=(count, WIDTH)).astype(np.float32)
    table[draw.random(table.shape) < 0.05] = np.nan
    return table


def trained(objective: str = "binary:logistic", rounds: int = 12, seed: int = 1) -> Trained:
    table = rows(3000, seed)
    known = np.nan_to_num(table)
    target = known[:, 0] * known[:, 1] + known[:, 2]
    if objective == "binary:logistic":
        target = (target > 0).astype(np.float32)
    matrix = xgb.QuantileDMatrix(table, target)
    booster = xgb.train(
        {"objective": objective, "max_depth": 4, "nthread": 2, "seed": seed}, matrix, rounds
    )
    return Trained(
        booster=booster,
        features=OPPORTUNITY.names,
        schema=OPPORTUNITY,
        frozen_rows=rows(500, 2),
        metrics={"auc": 0.9},
        lineage={"seed": seed},
    )
