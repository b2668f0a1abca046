import stat
from pathlib import Path

import pytest

from mev.crypto.keys import InvalidKeyError, SigningKey, default_key_id, load_or_create


def test_a_key_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = load_or_create(path, "mine")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (
        load_or_create(path).public_key
        == made.public_key
        == SigningKey.from_hex(path.read_text()).public_key
    )
    assert made.key_id == "mine"
    assert load_or_create(path).key_id == default_key_id(made.public_key)


def test_what_is_no_key_is_named_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content in (b"", b"abc", b"zz" * 32, b"00" * 31, b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(InvalidKeyError, match=str(path)):
            load_or_create(path)
        assert path.read_bytes() == content


def test_the_seed_is_not_shown() -> None:
    key = SigningKey("k", b"\x07" * 32)
    assert repr(key) == str(key) == "<SigningKey k>"


def test_new_keys_differ() -> None:
    assert SigningKey.generate().public_key != SigningKey.generate().public_key
