"""Browser protection: security headers, session cookies and cross-site request checks."""

from collections.abc import Collection
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from mev.auth.credentials import COOKIE, SECURE_COOKIE, Credential, CredentialSource
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
_EXPOSED = (
    b"access-control-expose-headers",
    b"ratelimit-limit, ratelimit-policy, ratelimit-remaining, ratelimit-reset, retry-after",
)
Headers = list[tuple[bytes, bytes]]


def security_headers(
    connect_sources: Collection[str] = (), style_sources: Collection[str] = ()
) -> Headers:
    """Return the headers of every response.

    Pages may connect to this server and to `connect_sources`, and use styles from this server and
    with the hashes `style_sources`.
    """
    connect = " ".join(["'self'", *connect_sources])
    styles = " ".join(["'self'", *style_sources])
    policy = (
        f"default-src 'none'; script-src 'self'; style-src {styles}; "
        f"img-src 'self' data:; font-src 'self'; connect-src {connect}; "
        "manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
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
    """Origins that may use the API: its own, and the `allowed` ones."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)

    def listed(self, origin: str) -> bool:
        """Return whether `origin` is in the list."""
        return origin.lower() in self._allowed

    def trusted(self, origin: str, host: str) -> bool:
        """Return whether pages of `origin` may act for the user logged in at `host`."""
        return self.listed(origin) or (bool(host) and _authority(origin) == host.lower())

    def answer_headers(self, origin: str) -> Headers:
        """Return the CORS headers of a response for a listed origin."""
        if not self.listed(origin):
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"vary", b"origin"),
            _EXPOSED,
        ]

    def preflight_headers(self, origin: str) -> Headers:
        """Return the additional CORS headers of a preflight response for a listed origin.

        :raises CrossSiteError: for another origin.
        """
        if not self.listed(origin):
            raise CrossSiteError(
                f"pages of {origin[:80]} may not use this API; CORS_ALLOWED_ORIGINS names "
                "those that may"
            )
        return _PREFLIGHT


def check_same_site(
    credential: Credential,
    principal: Principal,
    method: str,
    headers: Headers,
    origins: Origins,
    keyring: Keyring,
) -> None:
    """Refuse a request that a foreign page may have caused.

    A browser adds cookies and basic authentication automatically, so they do not show the user's
    intention. A write with a cookie must come from our origin and carry the CSRF token; basic
    authentication has no such token and is read-only.

    :raises CrossSiteError: for such a request.
    """
    if credential.source is CredentialSource.HEADER or method in SAFE_METHODS:
        return
    if credential.source is CredentialSource.BASIC:
        raise CrossSiteError(
            "with basic authentication nothing can be changed; send the key as X-API-Key"
        )
    sent = {
        name: value.decode("latin-1")
        for name, value in headers
        if name in {b"origin", b"host", CSRF_HEADER}
    }
    if not origins.trusted(sent.get(b"origin", ""), sent.get(b"host", "")):
        raise CrossSiteError("this did not come from a page of this server")
    if not keyring.is_csrf_token(principal.credential, sent.get(CSRF_HEADER, "")):
        raise CrossSiteError("send the session's token as X-CSRF-Token; GET /api/auth/me gives it")


def session_cookie(value: str, *, secure: bool, lifetime_s: float) -> str:
    """Return a Set-Cookie header for a session; a lifetime of 0 removes it."""
    name = SECURE_COOKIE if secure else COOKIE
    cookie: SimpleCookie = SimpleCookie()
    cookie[name] = value
    attributes = {
        "path": "/",
        "httponly": "1",
        "samesite": "Strict",
        "max-age": str(int(lifetime_s)),
        "secure": "1" if secure else "",
    }
    cookie[name].update(attributes)
    return cookie[name].OutputString()


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
