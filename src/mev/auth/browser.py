"""What protects people who use a browser: response headers, session cookies, and refusing what other sites make their browser send."""

from collections.abc import Collection
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from mev.auth.credentials import COOKIE, SECURE_COOKIE, Credential, Source
from mev.auth.errors import CrossSiteError
from mev.auth.model import Principal
from mev.auth.tokens import Keyring

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CSRF_HEADER = b"x-csrf-token"
HSTS = (b"strict-transport-security", b"max-age=63072000; includeSubDomains")
_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type, idempotency-key, x-api-key"),
    (b"access-control-max-age", b"600"),
]
_EXPOSED = (b"access-control-expose-headers", b"ratelimit-limit, ratelimit-policy, ratelimit-remaining, ratelimit-reset, retry-after")
Headers = list[tuple[bytes, bytes]]


def security_headers(connect_sources: Collection[str] = ()) -> Headers:
    """Return the headers of every answer; pages may fetch from here and from `connect_sources`."""
    connect = " ".join(["'self'", *connect_sources])
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        f"connect-src {connect}; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]


class Origins:
    """The pages that may talk to the API: its own, and those of the `allowed` origins."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)

    def listed(self, origin: str) -> bool:
        """Say whether pages of `origin` are on the list."""
        return origin.lower() in self._allowed

    def trusted(self, origin: str, host: str) -> bool:
        """Say whether pages of `origin` may act for whoever is logged in at `host`."""
        return self.listed(origin) or (bool(host) and _authority(origin) == host.lower())

    def answer_headers(self, origin: str) -> Headers:
        """Return what lets a page of a listed origin read an answer."""
        if not self.listed(origin):
            return []
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin"), _EXPOSED]

    def preflight_headers(self, origin: str) -> Headers:
        """Return what, beside :meth:`answer_headers`, lets a page of a listed origin send its request.

        :raises CrossSiteError: for another origin.
        """
        if not self.listed(origin):
            raise CrossSiteError(f"pages of {origin[:80]} may not use this API; CORS_ALLOWED_ORIGINS names those that may")
        return _PREFLIGHT


def check_same_site(
    credential: Credential, principal: Principal, method: str, headers: Headers, origins: Origins, keyring: Keyring
) -> None:
    """Refuse a request that a foreign page could have made a browser send.

    A credential that the browser added on its own does not show that its person meant the request. With a cookie, what changes
    something must come from a page of ours and carry the token that only such a page knows; with basic authentication, which has no
    such token, nothing can be changed.

    :raises CrossSiteError: for such a request.
    """
    if credential.source is Source.HEADER or method in SAFE_METHODS:
        return
    if credential.source is Source.BASIC:
        raise CrossSiteError("with basic authentication nothing can be changed; send the key as X-API-Key")
    sent = {name: value.decode("latin-1") for name, value in headers if name in {b"origin", b"host", CSRF_HEADER}}
    if not origins.trusted(sent.get(b"origin", ""), sent.get(b"host", "")):
        raise CrossSiteError("this did not come from a page of this server")
    if not keyring.is_csrf_token(principal.credential, sent.get(CSRF_HEADER, "")):
        raise CrossSiteError("send the session's token as X-CSRF-Token; GET /api/auth/me gives it")


def session_cookie(value: str, *, secure: bool, lifetime_s: float) -> str:
    """Return a Set-Cookie header for a session; a lifetime of 0 removes it."""
    name = SECURE_COOKIE if secure else COOKIE
    cookie: SimpleCookie = SimpleCookie()
    cookie[name] = value
    attributes = {"path": "/", "httponly": "1", "samesite": "Strict", "max-age": str(int(lifetime_s)), "secure": "1" if secure else ""}
    cookie[name].update(attributes)
    return cookie[name].OutputString()


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
