"""Which key sets are kept when one takes the place of another, and who may sign meanwhile."""

from pathlib import Path

import pytest

from mev.control.errors import RetiredKeyError
from mev.control.keys import open_keys, rotation
from mev.crypto.envelope import seal
from mev.crypto.keys import load_or_create
from mev.crypto.trust import AUDIT, COMMAND, MODEL, ROOT
from mev.wire.pb.envelope_pb2 import KeySet


def test_a_key_set_that_is_replaced_is_kept_with_its_end(tmp_path: Path) -> None:
    keys = open_keys(tmp_path, seed_hex=None, key_id=None, now_ns=100)
    assert keys.retired() == []
    first = keys.trust.key_set
    keys.adopt(rotation(tmp_path, 200), 201)
    second = keys.trust.key_set
    keys.adopt(rotation(tmp_path, 300), 301)
    assert [(each.key_set, each.until_ns) for each in keys.retired()] == [
        (second, 300),
        (first, 200),
    ]
    again = open_keys(tmp_path, seed_hex=None, key_id=None, now_ns=400)
    assert again.trust.epoch == 3
    assert [each.key_set.epoch for each in again.retired()] == [2, 1]
    assert again.signer().key_id in {key.key_id for key in again.trust.key_set.keys}


def test_a_key_that_was_replaced_signs_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    keys = open_keys(tmp_path / "here", seed_hex="11" * 32, key_id=None, now_ns=100)
    assert keys.signer() is keys.signing
    envelope = rotation(tmp_path / "here", 200)
    (tmp_path / "here" / "signing-key").unlink()  # the new key was made on another machine
    keys.adopt(envelope, 201)
    with pytest.raises(RetiredKeyError):
        keys.signer()


def test_models_have_a_key_of_their_own_that_replicas_share_and_a_rotation_replaces(
    tmp_path: Path,
) -> None:
    here, there = (
        open_keys(tmp_path / name, seed_hex="11" * 32, key_id="ours", now_ns=100)
        for name in ("here", "there")
    )
    roles = {key.key_id: list(key.roles) for key in here.trust.key_set.keys}
    assert roles["ours"] == [COMMAND, AUDIT]
    assert roles[here.model_signer().key_id] == [MODEL]
    assert (
        here.model_signer().public_key == there.model_signer().public_key != here.signing.public_key
    )
    before = here.model_signer()
    here.adopt(rotation(tmp_path / "here", 200), 201)
    assert here.model_signer().public_key != before.public_key
    assert {key.public_key for key in here.trust.key_set.keys if MODEL in key.roles} == {
        here.model_signer().public_key
    }


def test_a_key_set_without_a_key_for_models_signs_them_as_before_until_the_next_rotation(
    tmp_path: Path,
) -> None:
    root, signing = (load_or_create(tmp_path / name) for name in ("root-key", "signing-key"))
    old = KeySet(
        epoch=1,
        issued_at_ns=100,
        keys=[root.trusted_for(ROOT), signing.trusted_for(COMMAND, AUDIT)],
    )
    (tmp_path / "key-set").write_bytes(seal(old, root).SerializeToString())
    keys = open_keys(tmp_path, seed_hex=None, key_id=None, now_ns=150)
    assert keys.model_signer().key_id == signing.key_id
    keys.adopt(rotation(tmp_path, 200), 201)
    assert keys.model_signer().key_id not in {signing.key_id, keys.signing.key_id}
