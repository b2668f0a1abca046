"""After a key rotation: which manifests are signed again, and which never."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from mev.control.keys import Keys, open_keys, rotation
from mev.core.clock import now_ns
from mev.crypto.keys import SigningKey
from mev.registry.errors import LateManifestError, UnknownModelError
from mev.registry.registry import Registry
from mev.scoring.errors import (
    BadManifestError,
    BadModelDigestError,
    ModelError,
    ModelMissingError,
    ParityError,
    UnsignedManifestError,
)
from mev.scoring.manifest import Manifest, seal
from tests.unit.registry.samples import STRANGER, Made


class Place:
    """A control plane's keys, and the models that they signed."""

    def __init__(self, folder: Path, original: Made) -> None:
        self.control = folder / "control"
        self.keys: Keys = open_keys(self.control, seed_hex=None, key_id=None, now_ns=now_ns())
        self.original = original.manifest
        self.models = folder / "models"
        shutil.copytree(original.folder, self.models)
        self.path.unlink()
        self.write(self.original, self.keys.model_signer())
        self.registry = Registry(self.models, self.keys.trust)

    @property
    def path(self) -> Path:
        return self.models / f"{self.original.model_id}.manifest.json"

    def write(self, manifest: Manifest, *keys: SigningKey) -> None:
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(seal(manifest, *keys))

    def rotate(self) -> None:
        self.keys.adopt(rotation(self.control, now_ns()), now_ns())

    def sign(self) -> Manifest:
        return self.registry.sign(self.original.model_id, self.keys).manifest


@pytest.fixture
def place(tmp_path: Path, original: Made) -> Place:
    return Place(tmp_path, original)


def test_a_manifest_of_the_key_of_before_is_signed_again(place: Place) -> None:
    old = place.keys.model_signer().key_id
    place.registry.point("best", place.original.model_id)
    payload = orjson.loads(place.path.read_bytes())["payload"]
    place.rotate()
    assert "unsigned_manifest" in place.registry.list().refused[place.original.model_id]
    entry = place.registry.sign("best", place.keys)
    assert (entry.manifest, entry.aliases) == (place.original, ("best",))
    assert place.registry.list().refused == {}
    outer = orjson.loads(place.path.read_bytes())
    assert outer["payload"] == payload
    assert [each["keyid"] for each in outer["signatures"]] == [
        old,
        place.keys.model_signer().key_id,
    ]
    assert place.path.stat().st_mode & 0o777 == 0o400
    assert place.registry.load(place.original.model_id).predict(
        place.original.golden_rows
    ).shape == (64,)


def test_one_that_is_trusted_stays_as_it_is(place: Place) -> None:
    before = place.path.read_bytes()
    assert place.sign() == place.original
    assert place.path.read_bytes() == before
    with pytest.raises(UnknownModelError):
        place.registry.sign("best", place.keys)


def test_rotations_may_be_many_before_and_between(place: Place) -> None:
    place.rotate()
    place.rotate()
    place.sign()
    place.rotate()
    assert place.sign() == place.original
    reopened = open_keys(place.control, seed_hex=None, key_id=None, now_ns=now_ns())
    assert (
        Registry(place.models, reopened.trust).get(place.original.model_id).manifest
        == place.original
    )


def test_what_a_stolen_key_signs_afterwards_is_not(place: Place) -> None:
    stolen = place.keys.model_signer()
    place.rotate()
    place.write(replace(place.original, metrics={"auc": 1.0}), stolen)
    with pytest.raises(LateManifestError, match="after the key"):
        place.sign()


def test_what_nobody_or_a_stranger_signed_is_not(place: Place) -> None:
    for keys in ((), (STRANGER,)):
        place.write(place.original, *keys)
        place.rotate()
        with pytest.raises(UnsignedManifestError, match="epoch"):
            place.sign()


def test_without_the_key_sets_of_before_nothing_is(place: Place) -> None:
    place.rotate()
    (place.control / "key-set.1").unlink()
    with pytest.raises(UnsignedManifestError, match="none"):
        place.sign()


def test_one_that_nobody_vouches_for_can_be_trained_again(place: Place) -> None:
    place.rotate()
    (place.control / "key-set.1").unlink()
    files = {
        form: (place.models / f"{place.original.digest(form)}.{form}").read_bytes()
        for form in ("ubj", "mevt", "so")
    }
    again = replace(place.original, created_at="2026-02-02T00:00:00Z")
    for key, kept in ((STRANGER, None), (place.keys.model_signer(), again)):
        with nullcontext() if kept else pytest.raises(UnsignedManifestError):
            assert place.registry.add(again, files, key).manifest == kept
    assert (
        place.registry.add(place.original, files, place.keys.model_signer()).manifest == again
    )  # that one is trusted, and stays


def test_a_changed_manifest_is_not(place: Place) -> None:
    content = place.path.read_bytes()
    place.path.write_bytes(content.replace(b'"payload": "ey', b'"payload": "eQ'))
    place.rotate()
    with pytest.raises(BadManifestError):
        place.sign()


def changed(place: Place, form: str) -> None:
    path = place.models / f"{place.original.digest(form)}.{form}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda place: changed(place, "ubj"), BadModelDigestError),
        (lambda place: changed(place, "mevt"), BadModelDigestError),
        (lambda place: changed(place, "so"), BadModelDigestError),
        (
            lambda place: (place.models / f"{place.original.mevt_sha256}.mevt").unlink(),
            ModelMissingError,
        ),
        (
            lambda place: place.write(
                replace(
                    place.original, golden_scores=place.original.golden_scores + np.float32(0.01)
                ),
                place.keys.model_signer(),
            ),
            ParityError,
        ),
    ],
)
def test_a_model_that_is_not_as_it_was_is_not(
    place: Place, spoil: Callable[[Place], object], reason: type[ModelError]
) -> None:
    spoil(place)
    place.rotate()
    before = place.path.read_bytes()
    with pytest.raises(reason):
        place.sign()
    assert place.path.read_bytes() == before


def test_the_manifest_of_another_model_is_not(place: Place) -> None:
    other = place.models / f"{'1' * 64}.manifest.json"
    content = place.path.read_bytes()
    other.write_bytes(content)
    place.rotate()
    with pytest.raises(BadManifestError, match="under the name"):
        place.registry.sign("1" * 64, place.keys)
    assert other.read_bytes() == content
