"""Small models in a folder, signed by any given key, and the commands that swap to them."""

import hashlib
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mev.agent.model_source import Loaded, ModelSource
from mev.crypto.keys import SigningKey
from mev.crypto.trust import TrustStore
from mev.scoring.drift import Baseline
from mev.scoring.manifest import Manifest, Parity, seal
from mev.scoring.mevt import DecisionTree, TreeObjective, encode
from mev.scoring.native_engine import open_model
from mev.scoring.predictor import Rows, Scores
from mev.simulate.model import Market
from mev.wire.features import OPPORTUNITY
from mev.wire.pb.control_pb2 import PRODUCTION, ModelRole, SwapModel
from mev.wire.pb.events_pb2 import Opportunity

WIDTH = len(OPPORTUNITY.names)


def opportunities(count: int, seed: int = 1) -> list[Opportunity]:
    """Return the same opportunities for the same seed."""
    market = Market(seed, 100.0)
    return [market.step()[1] for _ in range(count)]


def rows(seen: list[Opportunity]) -> Rows:
    """Return their features."""
    return np.array([one.features for one in seen], np.float32)


class Shelf:
    """A folder of models, each made of a seed."""

    def __init__(self, folder: Path, key: SigningKey) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.key = key

    def add(
        self,
        seed: int,
        role: ModelRole = PRODUCTION,
        *,
        key: SigningKey | None = None,
        share: float = 1.0,
        **manifest: Any,
    ) -> SwapModel:
        """Store the model of `seed` with the given changes to its manifest; return its swap."""
        content = _content(seed)
        digest, model_id = (
            hashlib.sha256(content).hexdigest(),
            hashlib.sha256(b"xgboost %d" % seed).hexdigest(),
        )
        self._keep(f"{digest}.mevt", content)
        self._keep(
            f"{model_id}.manifest.json",
            seal(_manifest(model_id, digest, content, manifest), key or self.key),
        )
        return SwapModel(
            model_id=model_id,
            model_path=f"{digest}.mevt",
            version=f"v{seed}",
            sha256=bytes.fromhex(digest),
            role=role,
            share=share,
        )

    def _keep(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def scores(seed: int, seen: list[Opportunity]) -> Scores:
    """Return what the model of `seed` says."""
    return open_model(_content(seed)).predict(rows(seen))


class Gate:
    """Source of models that delays chosen loads; `loads` records all requested ids."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.loads: list[str] = []
        self._shut: dict[str, threading.Event] = {}

    def shut(self, swap: SwapModel) -> threading.Event:
        """Let the loading of that model wait for the event."""
        return self._shut.setdefault(swap.model_id, threading.Event())

    def load(self, swap: SwapModel, trust: TrustStore, at_ns: int) -> Loaded:
        self.loads.append(swap.model_id)
        if (gate := self._shut.get(swap.model_id)) is not None:
            gate.wait(30)
        return self.source.load(swap, trust, at_ns)


@cache
def _training_rows() -> Rows:
    return rows(opportunities(600))


@cache
def _content(seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    return encode(TreeObjective.LOGISTIC, WIDTH, np.float32(0.5), [_tree(draw) for _ in range(3)])


def _tree(draw: np.random.Generator) -> DecisionTree:
    """Return a tree of one split."""
    return DecisionTree(
        value=draw.normal(size=3).astype(np.float32),
        left=np.array([1, -1, -1], np.int32),
        right=np.array([2, -1, -1], np.int32),
        feature=np.array([draw.integers(WIDTH), 0, 0], np.int32),
        missing_left=np.array([True, False, False]),
    )


def _manifest(model_id: str, digest: str, content: bytes, changes: dict[str, Any]) -> Manifest:
    seen, engine = _training_rows(), open_model(content)
    golden = seen[:8]
    fields: dict[str, Any] = {
        "model_id": model_id,
        "created_at": "2026-01-01T00:00:00Z",
        "objective": "binary:logistic",
        "features": OPPORTUNITY.names,
        "feature_schema": OPPORTUNITY.name,
        "feature_schema_hash": OPPORTUNITY.hash,
        "trees": 3,
        "mevt_sha256": digest,
        "so_sha256": None,
        "cpu": "x86_64",
        "parity": Parity(rows=8, max_abs_diff=0.0),
        "metrics": {},
        "lineage": {},
        "baseline": Baseline.of(seen, engine.predict(seen), OPPORTUNITY.names),
        "golden_rows": golden,
        "golden_scores": engine.predict(golden),
    }
    return Manifest(**fields | changes)
