"""Tests of loading models: each refusal has its own code, and scores equal XGBoost's."""

import base64
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from mev.core.errors import MevError
from mev.crypto.trust import COMMAND, MODEL, TrustStore
from mev.registry.compile import compile_model
from mev.registry.register import score
from mev.scoring import model_files, probe
from mev.scoring.errors import (
    BadManifestError,
    BadModelDigestError,
    MalformedModelError,
    ModelError,
    ModelMissingError,
    ParityError,
    ProbeError,
    UnsafeModelFileError,
    UnsafeModelPathError,
    UnsignedManifestError,
    WrongAbiError,
    WrongRowsError,
    WrongSchemaError,
)
from mev.scoring.load import load, read_manifest
from mev.scoring.manifest import PAYLOAD_TYPE, Manifest, seal
from mev.wire.pb.envelope_pb2 import KeySet
from tests.unit.registry.samples import KEY, STRANGER, TRUST, Made, rows

FORMS = ("mevt", "so")


@pytest.mark.parametrize("form", FORMS)
def test_a_loaded_model_scores_as_xgboost_does(original: Made, form: str) -> None:
    predictor = load(original.path(form), original.manifest)
    assert (predictor.features, predictor.digest) == (
        original.trained.features,
        original.manifest.digest(form),
    )
    table = rows(100_000, 9)
    expected = score(original.trained.booster, table)
    assert probe.difference(expected, predictor.predict(table)) <= (
        0 if form == "mevt" else probe.TOLERANCE
    )
    with pytest.raises(WrongRowsError):
        predictor.predict(table[:, 1:])


def spoil(path: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_one_changed_bit_is_refused(made: Made, form: str, place: float) -> None:
    def flip(content: bytearray) -> None:
        content[int(place * len(content)) if place >= 0 else -1] ^= 1

    spoil(made.path(form), flip)
    with pytest.raises(BadModelDigestError, match="changed or cut"):
        load(made.path(form), made.manifest)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0, 0.1, 0.6, 0.99])
def test_a_cut_file_is_refused(made: Made, form: str, share: float) -> None:
    spoil(
        made.path(form), lambda content: content.__delitem__(slice(int(share * len(content)), None))
    )
    with pytest.raises(BadModelDigestError):
        load(made.path(form), made.manifest)


@pytest.mark.parametrize("name", ["../models/{}", "./{}", "{}/../{}", "/{}", "{}\0"])
def test_a_path_that_leaves_the_folder_is_refused(made: Made, name: str) -> None:
    with pytest.raises(UnsafeModelPathError):
        model_files.read(made.folder, name.replace("{}", made.path("mevt").name))


def test_a_file_that_is_too_large_is_refused(made: Made) -> None:
    spoil(made.path("mevt"), lambda content: content)
    os.truncate(made.path("mevt"), (256 << 20) + 1)  # a hole: nothing is written
    with pytest.raises(UnsafeModelFileError, match="bytes"):
        load(made.path("mevt"), made.manifest)


def test_a_file_of_another_user_is_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # what belongs to root is nobody else's
        os.chown(made.path("mevt"), 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UnsafeModelFileError, match="another user"):
        load(made.path("mevt"), made.manifest)


def test_a_link_is_refused(made: Made, tmp_path: Path) -> None:
    path, elsewhere = made.path("mevt"), tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(UnsafeModelFileError, match="symbolic link"):
        load(path, made.manifest)
    path.unlink()
    os.link(elsewhere, path)
    with pytest.raises(UnsafeModelFileError, match="second name"):
        load(path, made.manifest)


def test_what_is_no_plain_file_is_refused_at_once(made: Made) -> None:
    path = made.path("so")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UnsafeModelFileError, match="plain file"):
        load(path, made.manifest)
    path.unlink()
    path.mkdir()
    with pytest.raises(UnsafeModelFileError, match="plain file"):
        load(path, made.manifest)
    path.rmdir()
    with pytest.raises(ModelMissingError):
        load(path, made.manifest)


@pytest.mark.parametrize("mode", [0o420, 0o402])
def test_a_file_that_others_may_write_is_refused(made: Made, mode: int) -> None:
    made.path("mevt").chmod(mode)
    with pytest.raises(UnsafeModelFileError, match="others may write"):
        load(made.path("mevt"), made.manifest)


@pytest.mark.parametrize(
    "name",
    ["../models/x", "..", "/etc/passwd", "x/../../y", "a" * 64 + ".mevt\0", "A" * 64 + ".mevt"],
)
def test_a_name_that_leads_elsewhere_is_refused(made: Made, name: str) -> None:
    with pytest.raises(UnsafeModelPathError):
        read_manifest(made.folder, name, TRUST)


def test_a_file_that_the_manifest_does_not_name_is_refused(made: Made) -> None:
    other = made.folder / f"{'0' * 64}.mevt"
    other.write_bytes(made.path("mevt").read_bytes())
    with pytest.raises(BadModelDigestError, match="not a file that"):
        load(other, made.manifest)
    with pytest.raises(BadModelDigestError, match="not a file that"):
        load(made.path("mevt"), replace(made.manifest, mevt_sha256=None))


def test_other_features_are_refused(made: Made) -> None:
    for change, reason in (
        ({"feature_schema": "opportunity.v0"}, "opportunity.v0"),
        ({"feature_schema_hash": "0" * 64}, "hash"),
        ({"features": ("rivals", "luck")}, "luck"),
        ({"features": made.manifest.features[:-1]}, "features"),
    ):
        with pytest.raises(WrongSchemaError, match=reason):
            load(made.path("mevt"), replace(made.manifest, **change))


def test_another_interface_machine_or_model_is_refused(made: Made) -> None:
    for change, reason in (
        ({"abi": 2}, "interface 2"),
        ({"cpu": "m68k"}, "m68k"),
        ({"model_id": "0" * 64}, "model"),
    ):
        with pytest.raises(WrongAbiError, match=reason):
            load(made.path("so"), replace(made.manifest, **change))


def kept(made: Made, content: bytes, form: str = "so") -> tuple[Path, Manifest]:
    """Store `content` as a form of a matching manifest and return it."""
    digest = hashlib.sha256(content).hexdigest()
    path = made.folder / f"{digest}.{form}"
    path.write_bytes(content)
    return path, replace(made.manifest, so_sha256=digest) if form == "so" else replace(
        made.manifest, mevt_sha256=digest
    )


def test_a_signed_file_that_is_no_table_is_refused(made: Made) -> None:
    with pytest.raises(MalformedModelError, match="cannot be read"):
        load(*kept(made, made.path("mevt").read_bytes()[:-1], "mevt"))


def test_a_form_that_does_not_score_is_refused(made: Made) -> None:
    with pytest.raises(MalformedModelError, match="in no form"):
        load(made.folder / f"{made.manifest.model_id}.ubj", made.manifest)


def test_model_scores_the_same_without_native_module(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows(50, 3)
    expected = load(made.path("mevt"), made.manifest).predict(table)
    monkeypatch.setenv("MEV_NATIVE", "0")
    loaded = load(made.path("mevt"), made.manifest)
    np.testing.assert_array_equal(loaded.predict(table), expected)


def test_a_signed_file_that_is_no_library_is_refused(made: Made) -> None:
    with pytest.raises(MalformedModelError, match="cannot be loaded"):
        load(*kept(made, b"\x7fELF" + bytes(96)))


def test_a_signed_file_that_kills_its_loader_kills_only_a_child(made: Made) -> None:
    whole = made.path("so").read_bytes()
    with pytest.raises((ProbeError, MalformedModelError)):
        load(*kept(made, whole[: len(whole) * 6 // 10]))


def test_a_library_that_dies_when_it_scores_kills_only_a_child(made: Made) -> None:
    with pytest.raises(ProbeError, match="signal"):
        load(*kept(made, library("__builtin_trap(); return 0;", made.manifest)))


def test_a_library_that_does_not_score_is_refused(made: Made) -> None:
    with pytest.raises(ProbeError, match="code"):
        load(*kept(made, library("return -1;", made.manifest)))


def test_a_library_sees_nothing_of_the_environment(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTRL_SIGN_SK_HEX", "5" * 64)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    declared = "extern char *getenv(const char *);"
    secret = library(
        f'{declared} if (getenv("CTRL_SIGN_SK_HEX")) return -1; __builtin_trap(); return 0;',
        made.manifest,
    )
    with pytest.raises(ProbeError, match="signal"):
        load(*kept(made, secret))
    needed = library(
        f'{declared} if (getenv("LD_LIBRARY_PATH")) __builtin_trap(); return -1;', made.manifest
    )
    with pytest.raises(ProbeError, match="signal"):
        load(*kept(made, needed))


def library(body: str, manifest: Manifest) -> bytes:
    """Return a library that says what it must, and does `body` when it is asked to score."""
    source = f"""
        #include <stddef.h>
        #include <stdint.h>
        int32_t mev_abi_version(void) {{ return {manifest.abi}; }}
        int32_t mev_num_feature(void) {{ return {len(manifest.features)}; }}
        const char *mev_model_id(void) {{ return "{manifest.model_id}"; }}
        int32_t mev_predict(const float *x, size_t rows, size_t columns, int margin, float *out)
        {{ {body} }}
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "model.so")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", made],
            input=source,
            text=True,
            check=True,
        )
        return made.read_bytes()


def test_a_library_with_other_names_is_refused(made: Made) -> None:
    with pytest.raises(WrongAbiError, match="mev_"):
        load(
            *kept(
                made, made.path("so").read_bytes().replace(b"mev_abi_version", b"mev_abi_verzion")
            )
        )


@pytest.mark.parametrize("form", FORMS)
def test_other_scores_than_the_golden_ones_are_refused(made: Made, form: str) -> None:
    with pytest.raises(ParityError, match="1 of 64"):
        load(
            made.path(form),
            replace(
                made.manifest,
                golden_scores=made.manifest.golden_scores + np.eye(64, dtype=np.float32)[3] * 0.001,
            ),
        )


def test_a_model_compiled_from_another_one_is_refused(made: Made) -> None:
    other = compile_model(made.trained.booster[:3], made.manifest.model_id)
    with pytest.raises(ParityError):
        load(*kept(made, other))


def write(made: Made, content: bytes) -> None:
    path = made.folder / f"{made.manifest.model_id}.manifest.json"
    path.unlink()
    path.write_bytes(content)


def test_the_manifest_is_what_was_signed(made: Made) -> None:
    read = read_manifest(made.folder, made.manifest.model_id, TRUST)
    assert read == made.manifest
    np.testing.assert_array_equal(read.golden_rows, made.manifest.golden_rows)


def test_a_manifest_that_nobody_or_a_stranger_signed_is_refused(made: Made) -> None:
    for keys in ((), (STRANGER,)):
        write(made, seal(made.manifest, *keys))
        with pytest.raises(UnsignedManifestError):
            made.registry.get(made.manifest.model_id)


def test_a_changed_manifest_is_refused(made: Made) -> None:
    outer = orjson.loads(seal(made.manifest, KEY))
    payload = base64.b64decode(outer["payload"]).replace(b"0.9", b"1.0")
    write(made, orjson.dumps(outer | {"payload": base64.b64encode(payload).decode()}))
    with pytest.raises(UnsignedManifestError, match="does not fit"):
        made.registry.get(made.manifest.model_id)


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{}",
        b"[]",
        b'{"payload": 1}',
        b'{"payloadType":"x","payload":"","signatures":[{"keyid":"a","sig":""}]}',
    ],
)
def test_a_manifest_that_is_none_is_refused(made: Made, junk: bytes) -> None:
    write(made, junk)
    with pytest.raises(BadManifestError):
        made.registry.get(made.manifest.model_id)


def test_a_manifest_whose_baseline_is_none_is_refused(made: Made) -> None:
    assert made.manifest.baseline is not None
    write(
        made,
        seal(replace(made.manifest, baseline=replace(made.manifest.baseline, features={})), KEY),
    )
    with pytest.raises(BadManifestError, match="baseline"):
        made.registry.get(made.manifest.model_id)


def test_a_manifest_of_before_there_were_baselines_is_read(made: Made) -> None:
    payload = orjson.loads(base64.b64decode(orjson.loads(seal(made.manifest))["payload"]))
    del payload["baseline"]
    content = orjson.dumps(payload)
    signature = KEY.sign(PAYLOAD_TYPE, content)
    signatures = [{"keyid": signature.key_id, "sig": base64.b64encode(signature.sig).decode()}]
    write(
        made,
        orjson.dumps(
            {
                "payloadType": PAYLOAD_TYPE,
                "payload": base64.b64encode(content).decode(),
                "signatures": signatures,
            }
        ),
    )
    assert made.registry.get(made.manifest.model_id).manifest == replace(
        made.manifest, baseline=None
    )


def test_the_manifest_of_another_model_is_refused(made: Made) -> None:
    content = (made.folder / f"{made.manifest.model_id}.manifest.json").read_bytes()
    (made.folder / f"{'1' * 64}.manifest.json").write_bytes(content)
    with pytest.raises(BadManifestError, match="under the name"):
        made.registry.get("1" * 64)


def test_a_signature_for_a_command_vouches_for_no_model(made: Made) -> None:
    outer = orjson.loads(seal(made.manifest, KEY))
    outer["payloadType"] = "application/vnd.mev.command.v1+protobuf"
    write(made, orjson.dumps(outer))
    with pytest.raises(UnsignedManifestError) as caught:
        made.registry.get(made.manifest.model_id)
    assert caught.value.fields["reason"] == "wrong_payload_type"


def test_every_refusal_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    table = page.partition("## What is refused when a model is loaded")[2].partition("\n##")[0]
    kinds: tuple[type[MevError], ...] = (*ModelError.__subclasses__(), UnsignedManifestError)
    codes = {kind.code for kind in kinds}
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == codes - {"wrong_rows"}


def test_a_process_that_hangs_is_given_up(made: Made) -> None:
    with pytest.raises(ProbeError, match="within"):
        probe.probe(
            made.path("mevt").read_bytes(), "mevt", rows(1, 1), model_id="x", timeout_s=0.001
        )


def test_key_that_signs_commands_signs_models_only_until_a_key_of_their_own_is_named(
    made: Made,
) -> None:
    path = made.folder / f"{made.manifest.model_id}.manifest.json"
    before = TrustStore(KeySet(epoch=1, keys=[KEY.trusted_for(COMMAND)]))
    after = TrustStore(
        KeySet(epoch=2, keys=[KEY.trusted_for(COMMAND), STRANGER.trusted_for(MODEL)])
    )
    assert read_manifest(made.folder, made.manifest.model_id, before) == made.manifest
    with pytest.raises(UnsignedManifestError) as caught:
        read_manifest(made.folder, made.manifest.model_id, after)
    assert caught.value.fields["reason"] == "key_without_role"
    path.unlink()
    path.write_bytes(seal(made.manifest, STRANGER))
    assert read_manifest(made.folder, made.manifest.model_id, after) == made.manifest
