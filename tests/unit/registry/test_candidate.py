"""Tests of signing a training's output: each defect is refused by name, and nothing is stored."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from mev.core.errors import MevError
from mev.registry import candidate
from mev.registry.candidate import Candidate
from mev.registry.registry import Registry
from mev.scoring import manifest as manifests
from mev.scoring import model_files
from mev.scoring.errors import MalformedModelError
from mev.scoring.manifest import MAX_BYTES, Manifest
from tests.unit.registry.samples import KEY, TRUST, Made

LINEAGE = {"job": "job-1", "trained_by": "ada"}


@pytest.fixture
def left(original: Made, tmp_path: Path) -> Path:
    """Return a copy of a training's output."""
    files = {
        form: (original.folder / f"{original.manifest.digest(form)}.{form}").read_bytes()
        for form in ("ubj", "mevt", "so")
    }
    folder = tmp_path / "left"
    folder.mkdir()
    manifest = replace(
        original.manifest,
        lineage={"job": "another", "seed": 1},
        created_at="1999",
        cpu="z80",
        abi=99,
    )
    candidate.write(folder, Candidate(manifest=manifest, files=files))
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models", TRUST)


def test_what_the_signer_knows_counts_more_than_what_the_training_says(
    left: Path, registry: Registry, original: Made
) -> None:
    manifest = candidate.register(registry, left, KEY, LINEAGE, compiled=True).manifest
    assert manifest.lineage == {"job": "job-1", "trained_by": "ada", "seed": 1}
    assert manifest.created_at > "2026"
    assert (manifest.cpu, manifest.abi) == (original.manifest.cpu, original.manifest.abi)
    for form in ("mevt", "so"):
        assert registry.load(manifest.model_id, form).predict(manifest.golden_rows).shape == (64,)
    assert list(left.iterdir()) == []


def change(**values: object) -> Callable[[Path], None]:
    """Return what puts other values into the manifest."""

    def spoil(left: Path) -> None:
        path = left / "candidate.json"
        path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | values))

    return spoil


def other_scores(left: Path) -> None:
    content = orjson.loads((left / "candidate.json").read_bytes())
    content["golden"]["scores"] = manifests._numbers(np.zeros(64, np.float32))
    (left / "candidate.json").write_bytes(orjson.dumps(content))


def no_golden_rows(left: Path) -> None:
    change(golden={"rows": "", "scores": ""})(left)


def flip(left: Path) -> None:
    content = bytearray((left / "candidate.mevt").read_bytes())
    content[len(content) // 2] ^= 1
    (left / "candidate.mevt").write_bytes(content)


def grow(name: str, size: int) -> Callable[[Path], None]:
    def spoil(left: Path) -> None:
        with (left / name).open("r+b") as file:
            file.truncate(size)

    return spoil


def without(*names: str) -> Callable[[Path], None]:
    def spoil(left: Path) -> None:
        for name in names:
            (left / name).unlink()

    return spoil


def only_ubj(left: Path) -> None:
    without("candidate.mevt", "candidate.so")(left)
    change(mevt_sha256=None, so_sha256=None)(left)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (other_scores, "model_parity"),
        (no_golden_rows, "bad_manifest"),
        (flip, "bad_model_digest"),
        (change(model_id="0" * 64, ubj_sha256="0" * 64), "bad_model_digest"),
        (change(feature_schema="luck"), "wrong_feature_schema"),
        (change(feature_schema_hash="0" * 64), "wrong_feature_schema"),
        (change(metrics={"auc": "high"}), "bad_manifest"),
        (change(metrics=[1.0]), "bad_manifest"),
        (change(lineage="mine"), "bad_manifest"),
        (change(trees="many"), "bad_manifest"),
        (change(objective="x" * 1000), "bad_manifest"),
        (without("candidate.json"), "malformed_model"),
        (without("candidate.ubj"), "malformed_model"),
        (without("candidate.so"), "bad_manifest"),
        (only_ubj, "malformed_model"),
        (grow("candidate.json", MAX_BYTES + 1), "model_too_large"),
        (grow("candidate.mevt", model_files.MAX_BYTES + 1), "model_too_large"),
    ],
)
def test_what_is_not_as_it_says_is_refused_by_name(
    left: Path, registry: Registry, spoil: Callable[[Path], None], code: str
) -> None:
    spoil(left)
    with pytest.raises(MevError) as caught:
        candidate.register(registry, left, KEY, LINEAGE, compiled=True)
    assert caught.value.code == code
    assert not registry.folder.exists()


def test_native_code_that_was_not_asked_for_is_refused(left: Path, registry: Registry) -> None:
    with pytest.raises(MalformedModelError, match="not asked for"):
        candidate.register(registry, left, KEY, LINEAGE, compiled=False)
    assert not registry.folder.exists()
    without("candidate.so")(left)
    change(so_sha256=None)(left)
    assert (
        candidate.register(registry, left, KEY, LINEAGE, compiled=False).manifest.so_sha256 is None
    )


def test_the_manifest_survives_its_way(original: Made) -> None:
    again: Manifest = manifests.from_json(manifests.to_json(original.manifest))
    assert again == original.manifest
