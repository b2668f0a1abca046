import base64

import pytest

from mev.auth.credentials import Credential, CredentialSource, find

RAW = "clé-of-the-tests".encode()
Header = tuple[bytes, bytes]


def basic(user_and_password: bytes) -> Header:
    return b"authorization", b"Basic " + base64.b64encode(user_and_password)


@pytest.mark.parametrize(
    ("header", "source"),
    [
        ((b"x-api-key", RAW), CredentialSource.HEADER),
        ((b"authorization", b"Bearer " + RAW), CredentialSource.HEADER),
        ((b"authorization", b"bEaReR  " + RAW), CredentialSource.HEADER),
        (basic(b"anyone:" + RAW), CredentialSource.BASIC),
        (basic(b":" + RAW), CredentialSource.BASIC),
        ((b"cookie", b"a=b; mev_session=" + RAW + b"; c=d"), CredentialSource.COOKIE),
        ((b"cookie", b"__Host-mev_session=" + RAW), CredentialSource.COOKIE),
    ],
)
def test_a_credential_is_found_wherever_it_may_be(header: Header, source: CredentialSource) -> None:
    assert find([(b"host", b"h"), header]) == Credential(RAW, source)


def test_a_password_may_hold_a_colon() -> None:
    assert find([basic(b"anyone:user:password")]) == Credential(
        b"user:password", CredentialSource.BASIC
    )


def test_a_header_is_meant_and_wins_over_a_cookie() -> None:
    cookie, key = (b"cookie", b"mev_session=c"), (b"x-api-key", b"k")
    assert find([cookie, key]) == find([key, cookie]) == Credential(b"k")


def test_the_first_of_two_counts() -> None:
    assert find(
        [(b"x-api-key", b"a"), (b"x-api-key", b"b"), (b"authorization", b"Bearer c")]
    ) == Credential(b"a")
    assert find([(b"cookie", b"mev_session=a"), (b"cookie", b"mev_session=b")]) == Credential(
        b"a", CredentialSource.COOKIE
    )


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"cookie", RAW)],
        [(b"cookie", b"xmev_session=a; mev_session")],
        [(b"authorization", RAW)],
        [(b"authorization", b"")],
        [(b"authorization", b"Digest " + RAW)],
        [(b"authorization", b"Basic not*base64")],
    ],
)
def test_others_are_none(headers: list[Header]) -> None:
    found = find(headers)
    assert found is None or not found.value
