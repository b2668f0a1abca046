"""Tokens: only what one of our keys signed, the way we sign, is believed."""

import base64
import time
from typing import Any

import jwt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mev.auth.errors import SessionEndedError, UnauthorizedError
from mev.auth.model import Role
from mev.auth.tokens import BROWSER_PREFIX, REFRESH_PREFIX, Keyring, SessionToken

OLD, NEW = "an-old-key-of-the-tests" * 3, "a-new-key-of-the-tests" * 3
KEYRING = Keyring([NEW])


def token(keyring: Keyring = KEYRING) -> str:
    return keyring.access_token("alice", Role.OPERATOR, "s1", authenticated_at_s=5.0, lifetime_s=60)


def claims(**changes: Any) -> dict[str, Any]:
    fields = jwt.decode(token(), options={"verify_signature": False}) | changes
    return {name: value for name, value in fields.items() if value is not None}


def forged(fields: dict[str, Any], key: str = NEW, algorithm: str = "HS256", **header: Any) -> str:
    headers = {"kid": jwt.get_unverified_header(token())["kid"], **header}
    return jwt.encode(fields, key, algorithm, headers=headers)


def unsigned(header: dict[str, Any], signature: bytes = b"") -> str:
    parts = [orjson.dumps(header), orjson.dumps(claims()), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def test_a_token_says_who_and_what() -> None:
    read = KEYRING.read_access_token(token())
    assert (read.user, read.role, read.session, read.authenticated_at_s) == (
        "alice",
        Role.OPERATOR,
        "s1",
        5.0,
    )
    assert 50 < read.expires_at_s - time.time() <= 61


def test_a_forged_token_of_the_same_shape_is_read() -> None:
    """The tests below differ from this one in one thing each."""
    assert KEYRING.read_access_token(forged(claims())).user == "alice"


def test_keys_can_be_replaced_while_tokens_are_out() -> None:
    before = token(Keyring([OLD]))
    assert Keyring([NEW, OLD]).read_access_token(before).user == "alice"
    assert (
        jwt.get_unverified_header(token(Keyring([NEW, OLD])))["kid"]
        == jwt.get_unverified_header(token())["kid"]
    )
    with pytest.raises(UnauthorizedError, match="not in use"):
        KEYRING.read_access_token(before)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS384", "RS256", "ES256", ""])
def test_the_token_does_not_choose_the_algorithm(algorithm: str) -> None:
    kid = jwt.get_unverified_header(token())["kid"]
    for signature in (b"", b"x", base64.urlsafe_b64decode(token().rpartition(".")[2] + "=")):
        with pytest.raises(UnauthorizedError):
            KEYRING.read_access_token(
                unsigned({"alg": algorithm, "kid": kid, "typ": "JWT"}, signature)
            )


def test_another_hash_with_the_right_key_is_refused() -> None:
    with pytest.raises(UnauthorizedError):
        KEYRING.read_access_token(forged(claims(), algorithm="HS512"))


@pytest.mark.parametrize("kid", [None, "", "../../dev/null", "' OR 1=1", 5, ["a"], "0" * 12])
def test_an_unknown_key_id_selects_no_key(kid: object) -> None:
    for text in (unsigned({"alg": "HS256", "kid": kid}), unsigned({"alg": "HS256"})):
        with pytest.raises(UnauthorizedError):
            KEYRING.read_access_token(text)


def test_a_key_id_of_one_key_with_the_signature_of_another_is_refused() -> None:
    with pytest.raises(UnauthorizedError):
        Keyring([NEW, OLD]).read_access_token(forged(claims(), key=OLD))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "other"},
        {"aud": "other"},
        {"exp": int(time.time()) - 60},
        {"nbf": int(time.time()) + 1_000_000},
        {"role": "emperor"},
        *(
            {name: None}
            for name in (
                "iss",
                "aud",
                "sub",
                "sid",
                "role",
                "iat",
                "nbf",
                "exp",
                "jti",
                "auth_time",
            )
        ),
        {"auth_time": "x"},
    ],
)
def test_every_claim_is_needed_and_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(UnauthorizedError):
        KEYRING.read_access_token(forged(claims(**changes)))


@given(st.text() | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True))
def test_no_text_breaks_the_reading(text: str) -> None:
    with pytest.raises(UnauthorizedError):
        KEYRING.read_access_token(text)


def test_session_tokens_name_session_and_generation() -> None:
    text = KEYRING.session_token(REFRESH_PREFIX, "abc", 7)
    assert KEYRING.read_session_token(REFRESH_PREFIX, text) == SessionToken("abc", 7)
    assert Keyring([OLD, NEW]).read_session_token(REFRESH_PREFIX, text) == SessionToken("abc", 7)


@pytest.mark.parametrize(
    "text",
    [
        KEYRING.session_token(REFRESH_PREFIX, "abc", 7).replace("_7_", "_8_"),
        KEYRING.session_token(REFRESH_PREFIX, "abc", 7).replace("_abc_", "_abd_"),
        KEYRING.session_token(BROWSER_PREFIX, "abc", 7),
        KEYRING.session_token(BROWSER_PREFIX, "abc", 7).replace(BROWSER_PREFIX, REFRESH_PREFIX),
        Keyring([OLD]).session_token(REFRESH_PREFIX, "abc", 7),
        KEYRING.session_token(REFRESH_PREFIX, "abc", 7)[:-1],
        KEYRING.session_token(REFRESH_PREFIX, "abc", 7).removeprefix(REFRESH_PREFIX),
        "",
        "mevr_",
        "mevr_abc_\u0667_x",
        "mevr_abc_7_\udcff",
    ],
)
def test_other_session_tokens_are_nobodys(text: str) -> None:
    with pytest.raises(SessionEndedError):
        KEYRING.read_session_token(REFRESH_PREFIX, text)


def test_a_csrf_token_belongs_to_one_session() -> None:
    given_out = KEYRING.csrf_token("abc")
    assert KEYRING.is_csrf_token("abc", given_out)
    assert Keyring([OLD, NEW]).is_csrf_token("abc", given_out)
    for session, text in (
        ("abd", given_out),
        ("abc", ""),
        ("abc", given_out[:-1]),
        ("abc", Keyring([OLD]).csrf_token("abc")),
    ):
        assert not KEYRING.is_csrf_token(session, text)
