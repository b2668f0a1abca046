"""Access control of streams: authentication, quotas, and periodic checks of open connections."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mev.auth.credentials import Credential
from mev.auth.dependencies import check
from mev.auth.model import Permission, Principal
from mev.core.token_bucket import TokenBucket
from mev.realtime.client import Client
from mev.realtime.errors import QuotaExceededError, TooManyConnectionsError
from mev.realtime.hub import Hub
from mev.realtime.link import CloseCode
from mev.realtime.options import SubscriptionOptions
from mev.realtime.subscription import Subscription

_AT_ONCE = 32


class StreamAuthenticator(Protocol):
    """Authenticates credentials; shared with the HTTP application."""

    def known(self, credential: Credential) -> Principal | None:
        """Return the principal of a credential if it is cached, else None."""

    async def identify(
        self, credential: Credential, peer: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> Principal:
        """Return the principal of a credential, or raise the error to answer with."""

    async def renew(self, principal: Principal) -> Principal | None:
        """Return the current state of a principal, None if it is not valid any more."""

    def count_stranger(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> object:
        """Count a client without a credential, or raise if its address has too many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipalQuota:
    """Limits of one principal in one process, over all its connections.

    Without `bytes_per_s`, the rate is unlimited.
    """

    connections: int = 1000
    subscriptions: int = 10_000
    keys: int = 1_000_000
    bytes_per_s: int | None = None


class _Account:
    """Resources used by a principal."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self.clients: dict[int, Client] = {}
        self.pace = (
            TokenBucket(bytes_per_s, bytes_per_s, asyncio.get_running_loop().time)
            if bytes_per_s
            else None
        )


class StreamAccess:
    """Admits principals with permission to read the stream, within their quotas.

    Open connections are checked every `period_s`.
    """

    def __init__(
        self,
        hub: Hub,
        authenticator: StreamAuthenticator,
        *,
        quota: PrincipalQuota | None = None,
        period_s: float = 5,
    ) -> None:
        self._hub = hub
        self._authenticator = authenticator
        self._quota = quota or PrincipalQuota()
        self._period_s = period_s
        self._registered: dict[int, tuple[Client, Principal]] = {}
        self._accounts: dict[str, _Account] = {}

    def known(self, credential: Credential) -> Principal | None:
        """Return the principal of a credential if it is cached, else None."""
        return self._authenticator.known(credential)

    async def identify(
        self, credential: Credential, peer: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> Principal:
        """Return the principal of a credential.

        :raises MevError: if the credential is refused.
        :raises TimeoutError: if that takes longer than `auth_timeout_s`.
        """
        async with asyncio.timeout(self._hub.limits.auth_timeout_s):
            return await self._authenticator.identify(credential, peer, headers)

    def count_stranger(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Count a connection without a credential.

        :raises MevError: if its address has too many.
        """
        self._authenticator.count_stranger(peer, headers)

    def check(self, principal: Principal, client: Client | None = None) -> None:
        """Check that a principal may read the stream and open a connection.

        `client` is not counted.

        :raises ForbiddenError, TooManyConnectionsError: if it may not.
        """
        check(principal, Permission.STREAM_READ)
        account = self._accounts.get(principal.id)
        others = (
            len(account.clients) - (client is not None and client.id in account.clients)
            if account is not None
            else 0
        )
        if others >= self._quota.connections:
            raise TooManyConnectionsError(
                f"{principal.name} has {self._quota.connections} connections, which is the limit",
                retry_after_s=5,
            )

    def check_subscription(self, client: Client) -> None:
        """Check that the client's principal may have another subscription.

        :raises QuotaExceededError: if its limit is reached.
        """
        principal, others = self._subscriptions(client)
        limit = self._quota.subscriptions
        if len(others) >= limit:
            raise QuotaExceededError(
                f"{principal.name} has {limit} subscriptions, which is the limit; end one first"
            )

    def check_keys(self, client: Client, options: SubscriptionOptions) -> None:
        """Check the principal's limit of filter values, with those of `options`.

        :raises QuotaExceededError: if it would be exceeded.
        """
        if not options.keys:
            return
        principal, others = self._subscriptions(client)
        if sum(other.options.keys for other in others) + options.keys > self._quota.keys:
            raise QuotaExceededError(
                f"the filters of {principal.name} would have more than {self._quota.keys} keys; "
                "end some first"
            )

    def register(self, client: Client, principal: Principal) -> None:
        """Register a connection with its principal."""
        self.unregister(client)
        account = self._accounts.setdefault(principal.id, _Account(self._quota.bytes_per_s))
        account.clients[client.id] = client
        client.principal = principal.name
        client.quota = account.pace
        self._registered[client.id] = (client, principal)

    def unregister(self, client: Client) -> None:
        """Remove a connection."""
        _, principal = self._registered.pop(client.id, (client, None))
        if principal is not None:
            account = self._accounts[principal.id]
            del account.clients[client.id]
            if not account.clients:
                del self._accounts[principal.id]

    async def run(self) -> None:
        """Check all connections periodically, until cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            await self.check_all()

    async def check_all(self) -> None:
        """Close the connections of principals that may not read the stream any more."""
        clients: dict[tuple[str, str], list[Client]] = {}
        principals: dict[tuple[str, str], Principal] = {}
        for client, principal in self._registered.values():
            key = (principal.kind.value, principal.credential)
            clients.setdefault(key, []).append(client)
            principals[key] = principal
        keys = list(principals)
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            renewed = await asyncio.gather(
                *(self._authenticator.renew(principals[key]) for key in some)
            )
            for now, behind in zip(renewed, some, strict=True):
                if now is None or not now.may(Permission.STREAM_READ):
                    self._close(clients[behind])

    def _subscriptions(self, client: Client) -> tuple[Principal, Sequence[Subscription]]:
        """Return the principal of a client, and the subscriptions of all its connections."""
        _, principal = self._registered[client.id]
        clients = self._accounts[principal.id].clients.values()
        return principal, [
            subscription for each in clients for subscription in each.subscriptions.values()
        ]

    def _close(self, clients: list[Client]) -> None:
        for client in clients:
            self._hub.disconnect(
                client,
                CloseCode.UNAUTHORIZED,
                "the key or session has ended, or may not read the stream any more",
            )
