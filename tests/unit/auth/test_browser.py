import pytest

from mev.auth.browser import Origins, check_same_site, security_headers, session_cookie
from mev.auth.credentials import Credential, CredentialSource
from mev.auth.errors import CrossSiteError
from mev.auth.model import CredentialKind, Principal
from mev.auth.tokens import Keyring

KEYRING = Keyring(["a-secret-of-the-tests-with-40-characters"])
ORIGINS = Origins(["https://desk.example"])
WHO = Principal(
    id="user:a",
    name="a",
    kind=CredentialKind.BROWSER,
    permissions=frozenset(),
    user="a",
    credential="s1",
)
COOKIE, BASIC, HEADER = (
    Credential(b"x", source)
    for source in (CredentialSource.COOKIE, CredentialSource.BASIC, CredentialSource.HEADER)
)


def attempt(credential: Credential, method: str, **headers: str) -> None:
    raw = [
        (name.replace("_", "-").encode(), value.encode())
        for name, value in {"host": "mev.example:8000", **headers}.items()
    ]
    check_same_site(credential, WHO, method, raw, ORIGINS, KEYRING)


def test_what_a_page_of_ours_sends_with_the_token_is_meant() -> None:
    for origin in ("http://mev.example:8000", "https://desk.example"):
        attempt(COOKIE, "POST", origin=origin, x_csrf_token=KEYRING.csrf_token("s1"))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "post", "BREW"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "x_csrf_token": KEYRING.csrf_token("s1")},
        {"origin": "null", "x_csrf_token": KEYRING.csrf_token("s1")},
        {"origin": "http://mev.example", "x_csrf_token": KEYRING.csrf_token("s1")},
        {
            "origin": "http://mev.example:8000.evil.example",
            "x_csrf_token": KEYRING.csrf_token("s1"),
        },
        {"origin": "http://[", "host": "["},
        {"x_csrf_token": KEYRING.csrf_token("s1")},
        {"origin": "http://mev.example:8000"},
        {"origin": "http://mev.example:8000", "x_csrf_token": KEYRING.csrf_token("s2")},
    ],
)
def test_csrf_from_another_origin_or_without_the_token_is_refused(
    method: str, headers: dict[str, str]
) -> None:
    with pytest.raises(CrossSiteError):
        attempt(COOKIE, method, **headers)


def test_basic_authentication_changes_nothing() -> None:
    attempt(BASIC, "GET")
    with pytest.raises(CrossSiteError):
        attempt(
            BASIC, "POST", origin="http://mev.example:8000", x_csrf_token=KEYRING.csrf_token("s1")
        )


def test_programs_are_not_asked() -> None:
    attempt(HEADER, "DELETE")
    attempt(HEADER, "POST", origin="https://evil.example")
    attempt(COOKIE, "GET", origin="https://evil.example")


def test_no_page_may_run_what_it_holds_inside() -> None:
    headers = dict(security_headers(["https://127.0.0.1:4433"]))
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in headers[b"content-security-policy"].decode().split(";")
    )
    assert "unsafe" not in headers[b"content-security-policy"].decode()
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == "'self' https://127.0.0.1:4433"


def test_only_listed_origins_may_read() -> None:
    assert ORIGINS.answer_headers("https://evil.example") == []
    assert (b"access-control-allow-origin", b"https://desk.example") in ORIGINS.answer_headers(
        "https://desk.example"
    )
    assert not any(
        b"credentials" in name for name, _ in ORIGINS.preflight_headers("https://desk.example")
    )
    with pytest.raises(CrossSiteError):
        ORIGINS.preflight_headers("https://desk.example.evil.example")


def test_a_session_cookie_is_for_this_site_and_no_script() -> None:
    assert session_cookie("v", secure=True, lifetime_s=60) == (
        "__Host-mev_session=v; HttpOnly; Max-Age=60; Path=/; SameSite=Strict; Secure"
    )
    assert (
        session_cookie("v", secure=False, lifetime_s=60)
        == "mev_session=v; HttpOnly; Max-Age=60; Path=/; SameSite=Strict"
    )
    assert "Max-Age=0" in session_cookie("", secure=False, lifetime_s=0)
