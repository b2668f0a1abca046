import base64

import pytest

from mev.auth.master_key import MasterKey, UnauthorizedError

KEY = "clé-of-the-tests"
RAW = KEY.encode()

Header = tuple[bytes, bytes]


def basic(user_and_password: bytes) -> Header:
    return b"authorization", b"Basic " + base64.b64encode(user_and_password)


@pytest.mark.parametrize(
    "header",
    [
        (b"x-api-key", RAW),
        (b"authorization", b"Bearer " + RAW),
        (b"authorization", b"bEaReR " + RAW),
        basic(b"anyone:" + RAW),
        basic(b":" + RAW),
    ],
)
def test_the_key_is_taken_in_three_ways(header: Header) -> None:
    MasterKey(KEY).check_headers([(b"host", b"h"), header])


def test_a_key_may_hold_a_colon() -> None:
    MasterKey("user:password").check_headers([basic(b"anyone:user:password")])


@pytest.mark.parametrize(
    "header",
    [
        (b"x-api-key", b"wrong"),
        (b"x-api-key", b""),
        (b"x-api-key", RAW[:-1]),
        (b"x-api-key", RAW + b" "),
        (b"x-api-key", b"\xff\xfe"),
        (b"x-api-key", KEY.encode("latin-1")),
        (b"authorization", b"Bearer "),
        (b"authorization", b"Bearer \xff"),
        basic(RAW),
        basic(RAW + b":"),
        basic(b"anyone:\xff"),
        (b"authorization", b"Basic \xff\xff\xff\xff"),
    ],
)
def test_a_wrong_key_is_not_known(header: Header) -> None:
    with pytest.raises(UnauthorizedError, match="not known"):
        MasterKey(KEY).check_headers([header])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"cookie", RAW)],
        [(b"authorization", RAW)],
        [(b"authorization", b"")],
        [(b"authorization", b"Digest " + RAW)],
        [(b"authorization", b"Basic not*base64")],
    ],
)
def test_a_request_without_a_key_is_told_where_to_put_it(headers: list[Header]) -> None:
    with pytest.raises(UnauthorizedError, match="X-API-Key"):
        MasterKey(KEY).check_headers(headers)


def test_the_first_key_counts() -> None:
    with pytest.raises(UnauthorizedError):
        MasterKey(KEY).check_headers([(b"x-api-key", b"wrong"), (b"authorization", b"Bearer " + RAW)])


def test_text_and_bytes_match_alike() -> None:
    key = MasterKey(KEY)
    assert key.matches(KEY)
    assert key.matches(RAW)
    assert not key.matches("wrong")
    assert not key.matches("\udcff")  # what an HTTP library makes of a byte that is no text
    assert not key.matches("")
