"""What every HTTP request passes before its endpoint: browser rules, load shedding, who is asking, how often, how much.

The order matters. What costs least comes first; a stranger is counted by address before anything is looked up for them; only a
principal is counted by name. Health is let through without any of it.
"""

import re
import time
from collections.abc import Collection, Iterable
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
from mev.limits.addresses import Addresses
from mev.limits.bucket import Buckets
from mev.limits.errors import RateLimitedError
from mev.limits.rate import Decision, RateLimiter
from mev.limits.shedding import LoadShedder

HEALTH = "/api/health/"
PUBLIC = frozenset(
    {
        ("GET", "/api/health/"),  # probes of load balancers carry no key
        ("GET", "/api/health/ready"),
        ("POST", "/api/auth/login"),
        ("POST", "/api/auth/refresh"),  # the refresh token says who it is
        ("GET", "/api/realtime/webtransport"),  # where to connect, which asks who one is
    }
)
PUBLIC_FOLDERS = ("/docs/assets/",)  # files that anyone can download elsewhere
_BY_HAND = re.compile(r"/docs|/openapi\.json|/api/training/models/[^/]+/card")
# A busy server still obeys its operators, and says how it is.
_NEVER_SHED = (HEALTH, "/api/control/", "/metrics")
_BASIC = 'Basic realm="any name, and your API key as password"'


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """Bounds of request bodies; a lane reads its own, `lane_bytes` is what it may have."""

    size_bytes: int = 1 << 20
    lane_bytes: int = 8 << 20
    timeout_s: float = 30


class Gate:
    """Admits requests or raises what to answer."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        keyring: Keyring,
        limiter: RateLimiter,
        strangers: Buckets,
        shedder: LoadShedder,
        addresses: Addresses,
        origins: Origins,
        bodies: BodyLimits,
        connect_sources: Collection[str] = (),
    ) -> None:
        self._authenticator = authenticator
        self._keyring = keyring
        self._limiter = limiter
        self._strangers = strangers
        self._shedder = shedder
        self._addresses = addresses
        self._origins = origins
        self._bodies = bodies
        self._headers = browser.security_headers(connect_sources)
        rate = limiter.rate
        self._rate_headers = [
            (b"ratelimit-limit", b"%d" % rate.burst),
            (b"ratelimit-policy", b"%d;w=1;burst=%d" % (rate.per_s, rate.burst)),
        ]

    def answer_headers(self, scope: asgi.Scope) -> Headers:
        """Return the headers of every answer to a request; notes in `scope` that its connection is secure."""
        headers = self._headers.copy()
        if self._addresses.is_secure(scope["scheme"], _peer(scope), scope["headers"]):
            scope["scheme"] = "https"
            headers.append(browser.HSTS)
        origin = asgi.header(scope, b"origin")
        if origin is not None:
            headers += self._origins.answer_headers(origin.decode("latin-1"))
        return headers

    def preflight(self, scope: asgi.Scope) -> Headers | None:
        """Return the answer's headers when a request is a CORS preflight.

        :raises CrossSiteError: when its page may not do what it asks for.
        """
        origin = asgi.header(scope, b"origin")
        if scope["method"] != "OPTIONS" or origin is None or asgi.header(scope, b"access-control-request-method") is None:
            return None
        return self._origins.preflight_headers(origin.decode("latin-1"))

    async def admit(
        self, scope: asgi.Scope, receive: asgi.Receive, answer: Headers, lane: Permission | None, *, in_lane: bool
    ) -> asgi.Receive:
        """Put the principal into `scope`, headers into `answer`, and return a receiver for the endpoint.

        A lane reads its own body. For the framework the body is read here, so that no endpoint meets one that is too large or too slow.
        """
        path: str = scope["path"]
        if not path.startswith(_NEVER_SHED):
            # Who is told to send again in a moment must not hear then that it was too large all along.
            asgi.check_length(scope, self._bodies.lane_bytes if in_lane else self._bodies.size_bytes)
            self._shedder.check()
        if is_public(scope["method"], path):
            self._admit_stranger(scope)
        else:
            principal = await self._principal(scope)
            self._count(await self._decide(principal), answer)
            scope[PRINCIPAL] = principal
            if lane is not None:
                check(principal, lane)
        if in_lane:
            return receive
        return await asgi.buffered(scope, receive, limit_bytes=self._bodies.size_bytes, timeout_s=self._bodies.timeout_s)

    def _admit_stranger(self, scope: asgi.Scope) -> None:
        if scope["path"].startswith(HEALTH):
            return
        self.count_stranger(_peer(scope), scope["headers"])
        origin = asgi.header(scope, b"origin")
        if origin is not None and scope["method"] not in browser.SAFE_METHODS:
            # A foreign page could otherwise log its visitor in as somebody else.
            host = asgi.header(scope, b"host") or b""
            if not self._origins.trusted(origin.decode("latin-1"), host.decode("latin-1")):
                raise CrossSiteError("this did not come from a page of this server")

    def known(self, credential: Credential) -> Principal | None:
        """Return whose a credential is if that is known at once."""
        return self._authenticator.known(credential)

    async def identify(self, credential: Credential, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Look a credential up. Whoever guesses is counted by address; whoever is found, or was before, is not.

        :raises MevError: what to answer to who is not let in.
        """
        if self._authenticator.remembers(credential):
            return await self._authenticator.check(credential)
        address = self.count_stranger(peer, headers)
        principal = await self._authenticator.check(credential)
        self._strangers.give(address, time.monotonic())
        return principal

    async def renew(self, principal: Principal) -> Principal | None:
        """Return a principal as it is now, None when it is good no longer."""
        return await self._authenticator.renew(principal)

    async def _principal(self, scope: asgi.Scope) -> Principal:
        headers = scope["headers"]
        credential = find(headers)
        try:
            if credential is None:
                raise self._nobody(scope)
            principal = self._authenticator.known(credential) or await self.identify(credential, _peer(scope), headers)
        except (UnauthorizedError, SessionEndedError) as error:
            if _BY_HAND.fullmatch(scope["path"]):  # the browser asks for the key
                raise UnauthorizedError(error.detail, challenge=_BASIC) from None
            raise
        browser.check_same_site(credential, principal, scope["method"], headers, self._origins, self._keyring)
        return principal

    def _nobody(self, scope: asgi.Scope) -> UnauthorizedError:
        self.count_stranger(_peer(scope), scope["headers"])
        return UnauthorizedError(NO_CREDENTIAL)

    def count_stranger(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Count somebody who has not shown who they are, and return the address they are counted for.

        :raises RateLimitedError: when there are too many of that address.
        """
        address = self._addresses.client(peer, headers)
        wait_s = self._strangers.take(address, time.monotonic())
        if wait_s:
            raise RateLimitedError("too many requests from your address that say not who sends them", retry_after_s=int(wait_s) + 1)
        return address

    async def _decide(self, principal: Principal) -> Decision:
        return self._limiter.take_now(principal.id) or await self._limiter.take(principal.id)

    def _count(self, decision: Decision, answer: Headers) -> None:
        answer += self._rate_headers
        answer.append((b"ratelimit-remaining", b"%d" % decision.remaining))
        answer.append((b"ratelimit-reset", b"%d" % decision.reset_s))
        if not decision.allowed:
            raise RateLimitedError(
                f"more than {self._limiter.rate.per_s:g} requests a second, {self._limiter.rate.burst} at once",
                retry_after_s=decision.retry_after_s,
            )


def is_public(method: str, path: str) -> bool:
    """Say whether a request needs to say nothing of who sends it."""
    return ("GET" if method == "HEAD" else method, path) in PUBLIC or path.startswith(PUBLIC_FOLDERS)


def _peer(scope: asgi.Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""
