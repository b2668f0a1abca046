"""The gate before every endpoint: browser rules, load shedding, authentication and limits.

The order matters. The cheapest checks are first; a client without a known credential is counted by
address before any lookup; only a principal is counted by name. Health checks bypass the gate.
"""

import hashlib
import re
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from mev.auth import browser
from mev.auth.authenticator import NO_CREDENTIAL, Authenticator
from mev.auth.browser import Headers, Origins
from mev.auth.credentials import Credential, find
from mev.auth.dependencies import PRINCIPAL, check
from mev.auth.errors import CrossSiteError, SessionEndedError, UnauthorizedError
from mev.auth.model import Permission, Principal
from mev.auth.tokens import Keyring
from mev.core import asgi
from mev.core.asgi import ANONYMOUS, SENDER, Sender
from mev.dashboard.routes import ASSETS
from mev.limits.addresses import Addresses
from mev.limits.protocol import CONTROL_PATHS, KILL_SWITCH
from mev.limits.rate import Buckets, Rate, RateLimiter
from mev.limits.shedding import LoadShedder, RateLimitedError

HEALTH = "/api/health/"
LOCAL = "local socket"
"""Address of a client on the Unix socket."""
SENDER_KEY = "mev.sender"
PUBLIC = frozenset(
    {
        ("GET", "/"),  # the dashboard's page: the login is on it
        ("GET", "/api/health/"),  # load balancers send no key
        ("GET", "/api/health/ready"),
        ("POST", "/api/auth/login"),
        ("POST", "/api/auth/refresh"),  # the refresh token authenticates it
        ("GET", "/api/realtime/ws"),  # 426 without a handshake; handshakes are handled elsewhere
        ("GET", "/api/realtime/webtransport"),  # the address only; connecting needs a credential
    }
)
PUBLIC_FOLDERS = ("/docs/assets/", ASSETS)  # files without any data
_BY_HAND = re.compile(r"/docs|/openapi\.json|/api/training/models/[^/]+/card")
_PAGE = "/"
_LOGINS = frozenset({"/api/auth/login", "/api/auth/refresh"})
# A busy server still obeys its operators, who may have to open the dashboard first, and reports its
# health.
_NEVER_SHED = (HEALTH, CONTROL_PATHS, "/metrics", "/api/auth/", ASSETS)
_BASIC = 'Basic realm="any name, and your API key as password"'


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """Limits of request bodies; `lane_bytes` applies to raw routes, which read their own bodies."""

    size_bytes: int = 1 << 20
    values: int = 8192
    control_bytes: int = 384 << 10
    """Of the largest policy; other paths of control have less."""
    public_bytes: int = 16 << 10
    """Of strangers."""
    lane_bytes: int = 8 << 20
    timeout_s: float = 30
    max_ratio: float = asgi.DEFAULT_MAX_RATIO


class Gate:
    """Admits requests, or raises the error to answer with."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        keyring: Keyring,
        limiter: RateLimiter,
        control_limiter: RateLimiter,
        anonymous_rate: Rate,
        shedder: LoadShedder,
        addresses: Addresses,
        origins: Origins,
        bodies: BodyLimits,
        connect_sources: Collection[str] = (),
        style_sources: Collection[str] = (),
    ) -> None:
        self._authenticator = authenticator
        self._keyring = keyring
        self._limiter = limiter
        self._control_limiter = control_limiter
        self._anonymous_clients = Buckets(anonymous_rate)
        # A flood of other requests from its address must not keep an operator out.
        self._anonymous_control = Buckets(anonymous_rate)
        self._anonymous_pages = Buckets(anonymous_rate)
        self._logins = Buckets(anonymous_rate)
        self._shedder = shedder
        self._addresses = addresses
        self._origins = origins
        self._bodies = bodies
        self._large = asgi.LargeBodies()
        self._headers = browser.security_headers(connect_sources, style_sources)

    def answer_headers(self, scope: asgi.Scope) -> Headers:
        """Return the headers for any response to a request; set the scheme in `scope` if secure."""
        headers = self._headers.copy()
        if self._addresses.is_secure(scope["scheme"], peer_of(scope), scope["headers"]):
            scope["scheme"] = "https"
            headers.append(browser.HSTS)
        origin = asgi.header(scope, b"origin")
        if origin is not None:
            headers += self._origins.answer_headers(origin.decode("latin-1"))
        return headers

    def preflight(self, scope: asgi.Scope) -> Headers | None:
        """Return the response headers if a request is a CORS preflight, else None.

        :raises CrossSiteError: if the page may not make the request.
        """
        origin = asgi.header(scope, b"origin")
        if (
            scope["method"] != "OPTIONS"
            or origin is None
            or asgi.header(scope, b"access-control-request-method") is None
        ):
            return None
        return self._origins.preflight_headers(origin.decode("latin-1"))

    async def admit(
        self,
        scope: asgi.Scope,
        receive: asgi.Receive,
        answer: Headers,
        raw_route: Permission | None,
        *,
        in_lane: bool,
    ) -> asgi.Receive:
        """Add the principal to `scope` and headers to `answer`; return the endpoint's receiver.

        A raw route reads its own body. For the framework the body is read here, so that its size
        and time are limited.
        """
        path: str = scope["path"]
        is_open = is_public(scope["method"], path)
        limit_bytes = self._limit_bytes(path, is_open=is_open)
        if path != _PAGE and not path.startswith(_NEVER_SHED):
            # Check the length first: an overloaded server must not ask for a retry of a request
            # that it would then refuse as too large.
            asgi.check_length(scope, self._bodies.lane_bytes if in_lane else limit_bytes)
            self._shedder.check()
        remote = self._addresses.client(peer_of(scope), scope["headers"]) or LOCAL
        note_sender(scope, Sender(actor=ANONYMOUS, remote=remote))
        if is_open:
            self._admit_stranger(scope)
        else:
            principal = await self._principal(scope)
            note_sender(
                scope, Sender(actor=principal.id, session=principal.credential, remote=remote)
            )
            await self._count(principal, path, answer)
            scope[PRINCIPAL] = principal
            if raw_route is not None:
                check(principal, raw_route)
        if in_lane:
            return receive
        return await asgi.buffered(
            scope,
            receive,
            limit_bytes=limit_bytes,
            limit_values=self._bodies.values,
            large=self._large,
            timeout_s=self._bodies.timeout_s,
            max_ratio=self._bodies.max_ratio,
        )

    def stopping(self, scope: asgi.Scope) -> AbstractContextManager[None] | None:
        """Return the context in which an admitted stop takes precedence; None if it is none."""
        is_stop = scope["path"] == KILL_SWITCH and scope["method"] == "POST"
        if not (is_stop and scope[PRINCIPAL].may(Permission.CONTROL_LOWER)):
            return None
        return self._large.stopping()

    def _limit_bytes(self, path: str, *, is_open: bool) -> int:
        bodies = self._bodies
        if is_open:
            return min(bodies.size_bytes, bodies.public_bytes)
        return (
            min(bodies.size_bytes, bodies.control_bytes)
            if path.startswith(CONTROL_PATHS)
            else bodies.size_bytes
        )

    def _admit_stranger(self, scope: asgi.Scope) -> None:
        if scope["path"].startswith(HEALTH):
            return
        credential = find(scope["headers"]) if scope["method"] in browser.SAFE_METHODS else None
        if credential is not None and (
            self._authenticator.remembers(credential) or self._authenticator.is_genuine(credential)
        ):
            # Redis is not asked: the session may have ended, so it is counted all the same.
            name = hashlib.sha256(credential.value).hexdigest()
            _take(self._buckets(scope["path"]), name, "with your credential")
        else:
            self.count_stranger(peer_of(scope), scope["headers"], scope["path"])
        origin = asgi.header(scope, b"origin")
        if origin is not None and scope["method"] not in browser.SAFE_METHODS:
            # A foreign page could otherwise log its visitor in to another account.
            host = asgi.header(scope, b"host") or b""
            if not self._origins.trusted(origin.decode("latin-1"), host.decode("latin-1")):
                raise CrossSiteError("this did not come from a page of this server")

    def known(self, credential: Credential) -> Principal | None:
        """Return the principal of a credential if it is cached, else None."""
        return self._authenticator.known(credential)

    async def identify(
        self,
        credential: Credential,
        peer: str,
        headers: Iterable[tuple[bytes, bytes]],
        path: str = "",
    ) -> Principal:
        """Return the principal of a credential.

        Credentials that this server issued are exempt from the limit per address: a flood from the
        same address does not lock out sessions or the master key.

        :raises MevError: when the credential is refused; the response is in the error.
        """
        if self._authenticator.remembers(credential):
            return await self._authenticator.check(credential)
        if self._authenticator.is_genuine(credential):
            try:
                return await self._authenticator.check(credential)
            except (UnauthorizedError, SessionEndedError):
                self.count_stranger(peer, headers, path)
                raise
        address = self.count_stranger(peer, headers, path)
        principal = await self._authenticator.check(credential)
        self._buckets(path).give(address)
        return principal

    async def renew(self, principal: Principal) -> Principal | None:
        """Return the current state of a principal, None if it is not valid any more."""
        return await self._authenticator.renew(principal)

    async def _principal(self, scope: asgi.Scope) -> Principal:
        headers = scope["headers"]
        credential = find(headers)
        try:
            if credential is None:
                raise self._nobody(scope)
            principal = self._authenticator.known(credential) or await self.identify(
                credential, peer_of(scope), headers, scope["path"]
            )
        except (UnauthorizedError, SessionEndedError) as error:
            if _BY_HAND.fullmatch(scope["path"]):  # makes the browser ask for the key
                raise UnauthorizedError(error.detail, challenge=_BASIC) from None
            raise
        browser.check_same_site(
            credential, principal, scope["method"], headers, self._origins, self._keyring
        )
        return principal

    def _nobody(self, scope: asgi.Scope) -> UnauthorizedError:
        self.count_stranger(peer_of(scope), scope["headers"], scope["path"])
        return UnauthorizedError(NO_CREDENTIAL)

    def count_stranger(
        self, peer: str, headers: Iterable[tuple[bytes, bytes]], path: str = ""
    ) -> str:
        """Count a request without a known credential; return the address it counts against.

        :raises RateLimitedError: if there are too many from that address.
        """
        address = self._addresses.client(peer, headers)
        _take(self._buckets(path), address, "without a credential from your address")
        return address

    def _buckets(self, path: str) -> Buckets:
        if path.startswith(CONTROL_PATHS):
            return self._anonymous_control
        if path in _LOGINS:
            return self._logins
        if path == _PAGE or path.startswith(ASSETS):
            return self._anonymous_pages
        return self._anonymous_clients

    async def _count(self, principal: Principal, path: str, answer: Headers) -> None:
        limiter, name = self._limiter, principal.id
        if path.startswith(CONTROL_PATHS):
            # Other requests with the same key must not delay a kill switch.
            limiter, name = (
                self._control_limiter,
                f"{'kill' if path == KILL_SWITCH else 'control'}:{name}",
            )
        decision = limiter.take_now(name) or await limiter.take(name)
        rate = limiter.rate
        answer += [
            (b"ratelimit-limit", b"%d" % rate.burst),
            (b"ratelimit-policy", b"%d;w=1;burst=%d" % (rate.per_s, rate.burst)),
            (b"ratelimit-remaining", b"%d" % decision.remaining),
            (b"ratelimit-reset", b"%d" % decision.reset_s),
        ]
        if not decision.allowed:
            raise RateLimitedError(
                f"more than {rate.per_s:g} requests a second, {rate.burst} at once",
                retry_after_s=decision.retry_after_s,
            )


def _take(buckets: Buckets, name: str, whose: str) -> None:
    wait_s = buckets.take(name)
    if wait_s:
        raise RateLimitedError(f"too many requests {whose}", retry_after_s=int(wait_s) + 1)


def note_sender(scope: asgi.Scope, sender: Sender) -> None:
    """Record the sender of this request for all code that handles it."""
    scope[SENDER_KEY] = sender
    SENDER.set(sender)


def is_public(method: str, path: str) -> bool:
    """Return whether a request needs no credential."""
    return ("GET" if method == "HEAD" else method, path) in PUBLIC or path.startswith(
        PUBLIC_FOLDERS
    )


def peer_of(scope: asgi.Scope) -> str:
    """Return the address of the peer, empty if unknown."""
    client = scope.get("client")
    return client[0] if client else ""
