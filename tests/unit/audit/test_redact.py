import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.audit.redact import MAX_DETAILS_BYTES, Redactor, is_secret

REDACTOR = Redactor(b"k" * 32)


SECRETS = [
    "password",
    "Password",
    "newPassword",
    "api_key",
    "X-API-Key",
    "apiKey",
    "access_token",
    "refreshToken",
    "client_secret",
    "JWT_SECRET_KEY",
    "ctrl_sign_sk_hex",
    "seed",
    "private_key",
    "Authorization",
    "key",
    "password_hash",
    "secretValue",
    "cookie",
]


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_known_by_their_names(name: str) -> None:
    assert is_secret(name)
    assert "hunter2" not in REDACTOR.details_json(
        {name: "hunter2", "list": [{name: ["hunter2"]}], "deep": {"x": {name: {"a": "hunter2"}}}}
    )


@pytest.mark.parametrize(
    "name",
    [
        "key_id",
        "config_key",
        "public_key",
        "token_count",
        "monkey",
        "action",
        "secret_name",
        "",
        "1",
    ],
)
def test_what_only_sounds_like_one_stays(name: str) -> None:
    assert not is_secret(name)
    assert json.loads(REDACTOR.details_json({name: "batch_window_ms"})) == {name: "batch_window_ms"}


def test_equal_secrets_can_be_compared_within_a_folder_only() -> None:
    one, two, other = (
        json.loads(REDACTOR.details_json({"token": token}))["token"] for token in ("a", "a", "b")
    )
    assert one == two != other
    assert one.startswith("hmac:")
    assert json.loads(Redactor(b"x" * 32).details_json({"token": "a"}))["token"] != one


def test_absence_is_no_secret() -> None:
    details = {"password": None, "token": "", "secret": True}
    assert json.loads(REDACTOR.details_json(details)) == details


def test_the_key_is_made_once(tmp_path: Path) -> None:
    assert Redactor.of_folder(tmp_path)._key == Redactor.of_folder(tmp_path)._key
    assert len((tmp_path / "hmac-key").read_bytes()) == 32


def test_long_details_become_their_hash() -> None:
    text = REDACTOR.details_json({"x": "y" * MAX_DETAILS_BYTES})
    assert json.loads(text)["too_long_bytes"] > MAX_DETAILS_BYTES


@given(
    st.dictionaries(
        st.text(max_size=9),
        st.one_of(
            st.text(max_size=9), st.integers(), st.floats(), st.binary(max_size=9), st.none()
        ),
    )
)
def test_any_details_become_json_that_utf_8_can_hold(details: dict[str, object]) -> None:
    assert isinstance(json.loads(REDACTOR.details_json(details)), dict)
    REDACTOR.details_json(details | {"surrogate": "\ud800"}).encode()
