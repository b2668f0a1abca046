"""Which key sets are kept when one takes the place of another, and who may sign meanwhile."""

from pathlib import Path

import pytest

from mev.control.errors import RetiredKeyError
from mev.control.keys import open_keys, rotation


def test_a_key_set_that_is_replaced_is_kept_with_its_end(tmp_path: Path) -> None:
    keys = open_keys(tmp_path, seed_hex=None, key_id=None, now_ns=100)
    assert keys.retired() == []
    first = keys.trust.key_set
    keys.adopt(rotation(tmp_path, 200), 201)
    second = keys.trust.key_set
    keys.adopt(rotation(tmp_path, 300), 301)
    assert [(each.key_set, each.until_ns) for each in keys.retired()] == [(second, 300), (first, 200)]
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
