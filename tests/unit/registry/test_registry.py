"""Tests of registering, listing, aliases and archiving, and of the parity check."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from mev.core.errors import InvalidInputError
from mev.registry import register as register_module
from mev.registry.errors import (
    AmbiguousModelError,
    CompilerMissingError,
    ModelInUseError,
    ModelTooLargeError,
    UnknownModelError,
)
from mev.registry.pack import pack
from mev.registry.register import score
from mev.registry.registry import Registry
from mev.scoring import manifest, model_files, probe
from mev.scoring.drift import Baseline
from mev.scoring.errors import BadModelDigestError, ParityError
from mev.scoring.mevt import NODE
from tests.services.models import register
from tests.unit.registry.samples import KEY, TRUST, Made, rows, trained


def test_a_registered_model_has_its_files_and_its_parity(original: Made) -> None:
    names = {
        path.name.split(".", 1)[1]
        for path in original.folder.iterdir()
        if not path.name.startswith(".")
    }
    assert names == {"ubj", "mevt", "so", "manifest.json"}
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in original.folder.glob("[0-9a-f]*"))
    assert original.manifest.parity.rows == 1000
    assert original.manifest.parity.max_abs_diff <= probe.TOLERANCE
    assert np.isnan(original.manifest.golden_rows).any(axis=1).sum() >= 32
    assert original.manifest.trees == 12


def test_the_baseline_is_of_the_rows_as_they_were(original: Made) -> None:
    baseline, frozen = original.manifest.baseline, original.trained.frozen_rows
    assert baseline == Baseline.of(
        frozen, score(original.trained.booster, frozen), original.trained.features
    )
    assert baseline is not None
    assert (
        max(spread.missing for spread in baseline.features.values()) < 0.1
    )  # a third is, in the rows that parity is tried with
    assert baseline.scores.missing == 0


@pytest.mark.parametrize("form", ["ubj", "mevt", "manifest"])
def test_a_model_that_agents_would_refuse_for_its_size_is_not_registered(
    original: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    files = {
        "ubj": f"{original.manifest.model_id}.ubj",
        "mevt": original.path("mevt").name,
        "manifest": "*.manifest.json",
    }
    sizes = {
        name: next(original.folder.glob(pattern)).stat().st_size for name, pattern in files.items()
    }
    assert sizes["mevt"] < sizes["ubj"]
    module, bound = (
        (manifest, sizes[form] // 2) if form == "manifest" else (model_files, sizes[form] - 1)
    )
    if form == "mevt":
        monkeypatch.setattr(
            register_module, "pack", lambda booster: pack(booster) + bytes(sizes["ubj"])
        )
        bound = sizes["ubj"]
    monkeypatch.setattr(module, "MAX_BYTES", bound)
    registry = Registry(tmp_path / "models", TRUST)
    with pytest.raises(ModelTooLargeError, match=f"the {form} file has .* smaller trees") as caught:
        register(registry, original.trained, KEY)
    assert (caught.value.code, caught.value.status) == ("model_too_large", 413)
    assert not registry.folder.exists()


def test_the_same_model_is_registered_once(made: Made) -> None:
    again = register(made.registry, made.trained, KEY)
    assert again.manifest == made.manifest
    assert len(made.registry.list().entries) == 1


def test_a_form_that_scores_otherwise_is_not_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(booster: xgb.Booster) -> bytes:
        content = bytearray(pack(booster))
        leaf = np.frombuffer(content[-NODE.itemsize :], NODE).copy()
        leaf["value"] += 0.01
        content[-NODE.itemsize :] = leaf.tobytes()
        return bytes(content)

    monkeypatch.setattr(register_module, "pack", spoilt)
    registry = Registry(tmp_path / "models", TRUST)
    with pytest.raises(ParityError, match="off by more"):
        register(registry, trained(), KEY)
    assert not registry.folder.exists()


def test_a_model_without_a_data_only_form_is_compiled(tmp_path: Path) -> None:
    registry, model = Registry(tmp_path, TRUST), trained("reg:absoluteerror", rounds=3)
    manifest = register(registry, model, KEY).manifest
    assert (manifest.mevt_sha256, manifest.objective) == (None, "reg:absoluteerror")
    table = rows(200, 5)
    assert (
        probe.difference(
            score(model.booster, table), registry.load(manifest.model_id).predict(table)
        )
        <= probe.TOLERANCE
    )


def test_without_a_compiler_the_data_only_form_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    registry = Registry(tmp_path / "models", TRUST)
    assert register(registry, trained(rounds=2), KEY).manifest.so_sha256 is None
    with pytest.raises(CompilerMissingError, match="gcc"):
        register(registry, trained(rounds=2), KEY, compiled=True)


def test_aliases_move_and_protect_from_the_archive(made: Made) -> None:
    first = made.manifest.model_id
    second = register(made.registry, trained(seed=2, rounds=3), KEY).manifest.model_id
    assert [entry.manifest.model_id for entry in made.registry.list().entries] == [second, first]
    made.registry.point("champion", first)
    assert made.registry.get("champion").manifest.model_id == first
    made.registry.point("champion", second)
    assert made.registry.get(second).aliases == ("champion",)
    assert made.registry.get(first).aliases == ()
    with pytest.raises(ModelInUseError, match="champion"):
        made.registry.archive("champion")
    made.registry.archive(first)
    assert [entry.manifest.model_id for entry in made.registry.list().entries] == [second]
    assert len(made.registry.list(archived=True).entries) == 2
    with pytest.raises(ModelInUseError, match="archived"):
        made.registry.point("shadow", first)
    assert made.registry.archive(first, archived=False).archived_at is None
    made.registry.point("champion", None)
    with pytest.raises(UnknownModelError):
        made.registry.get("champion")


@pytest.mark.parametrize("name", ["", "../x", "a" * 64, "champion", "/etc/passwd"])
def test_a_model_that_is_not_there_is_unknown(made: Made, name: str) -> None:
    with pytest.raises(UnknownModelError):
        made.registry.get(name)


@pytest.mark.parametrize("alias", ["", "Champion", "a" * 64, "../x", "1st"])
def test_an_alias_that_could_be_something_else_is_refused(made: Made, alias: str) -> None:
    with pytest.raises(InvalidInputError):
        made.registry.point(alias, made.manifest.model_id)


def test_a_refused_manifest_is_listed_as_such_and_hides_nothing(made: Made) -> None:
    bad = made.folder / f"{'2' * 64}.manifest.json"
    bad.write_bytes(b"{}")
    listing = made.registry.list()
    assert len(listing.entries) == 1
    assert listing.refused["2" * 64].startswith("bad_manifest")


def test_a_model_is_named_by_the_beginning_of_its_id(made: Made) -> None:
    model_id = made.manifest.model_id
    assert {made.registry.get(model_id[:length]).manifest.model_id for length in (8, 12, 63)} == {
        model_id
    }
    for name in (model_id[:7], model_id[1:20], f"{model_id[:8]}*", f"{model_id[:12]}..."):
        with pytest.raises(UnknownModelError):
            made.registry.get(name)
    alias = "feedbeef"
    made.registry.point(alias, model_id[:12])
    (made.folder / f"{alias}{'0' * 56}.manifest.json").write_bytes(b"{}")
    assert made.registry.get(alias).manifest.model_id == model_id


def test_a_beginning_of_several_ids_is_refused_with_their_names(made: Made) -> None:
    model_id = made.manifest.model_id
    other = model_id[:12] + "".join(reversed(model_id[12:]))
    (made.folder / f"{other}.manifest.json").write_bytes(b"{}")
    with pytest.raises(AmbiguousModelError) as raised:
        made.registry.get(model_id[:12])
    assert raised.value.fields == {"models": sorted([model_id, other])}
    assert made.registry.get(model_id).manifest.model_id == model_id


def test_files_that_do_not_fit_the_manifest_are_not_kept(made: Made) -> None:
    other = replace(made.manifest, mevt_sha256="0" * 64)
    with pytest.raises(BadModelDigestError):
        made.registry.add(other, {"mevt": b"x"}, KEY)


def _point(folder: Path, number: int, model_id: str) -> None:
    for step in range(10):
        Registry(folder, TRUST).point(f"alias-{number}-{step}", model_id)


def test_writers_wait_for_each_other(made: Made) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [
        spawn.Process(target=_point, args=(made.folder, number, made.manifest.model_id))
        for number in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(made.registry.get(made.manifest.model_id).aliases) == 20
