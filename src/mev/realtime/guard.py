"""Who is behind each connection, and whether they still may be: looked at again every few seconds for as long as it is open."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from mev.auth.credentials import Credential
from mev.auth.dependencies import check
from mev.auth.model import Permission, Principal
from mev.realtime.client import Client
from mev.realtime.errors import QuotaExceededError, TooManyConnectionsError
from mev.realtime.hub import Hub
from mev.realtime.pace import Allowance
from mev.realtime.terms import Terms
from mev.realtime.websocket import Close

_AT_ONCE = 32


class Doorkeeper(Protocol):
    """Who answers for credentials; the HTTP application asks the same one."""

    def known(self, credential: Credential) -> Principal | None:
        """Return whose a credential is if that is known at once."""

    async def identify(self, credential: Credential, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Return whose a credential is, or raise what to answer."""

    async def renew(self, principal: Principal) -> Principal | None:
        """Return a principal as it is now, None when it is good no longer."""

    def count_stranger(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> object:
        """Count somebody who says not yet who they are, or raise when there are too many of that address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one principal may have in one process, over all its connections; no `bytes_per_s` is as many as go."""

    connections: int = 1000
    subscriptions: int = 10_000
    keys: int = 1_000_000
    bytes_per_s: int | None = None


class _Account:
    """What a principal has."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self.clients: dict[int, Client] = {}
        self.pace = Allowance(bytes_per_s) if bytes_per_s else None


class Guard:
    """Lets principals in that may read the stream, as far as their quota goes; looks again every `period_s`."""

    def __init__(self, hub: Hub, doorkeeper: Doorkeeper, *, quota: Quota | None = None, period_s: float = 5) -> None:
        self._hub = hub
        self._doorkeeper = doorkeeper
        self._quota = quota or Quota()
        self._period_s = period_s
        self._inside: dict[int, tuple[Client, Principal]] = {}
        self._accounts: dict[str, _Account] = {}

    def known(self, credential: Credential) -> Principal | None:
        """Return whose a credential is if that is known at once."""
        return self._doorkeeper.known(credential)

    async def identify(self, credential: Credential, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Return whose a credential is.

        :raises MevError: what to answer when it is nobody's, or that cannot be said within the time a stranger has.
        """
        async with asyncio.timeout(self._hub.limits.auth_timeout_s):
            return await self._doorkeeper.identify(credential, peer, headers)

    def count_stranger(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Count a connection that says not yet whose it is.

        :raises MevError: when there are too many of that address.
        """
        self._doorkeeper.count_stranger(peer, headers)

    def check(self, principal: Principal, client: Client | None = None) -> None:
        """Refuse a principal that may not read the stream, or has as many connections as it may, without `client`.

        :raises ForbiddenError, TooManyConnectionsError: then.
        """
        check(principal, Permission.STREAM_READ)
        account = self._accounts.get(principal.id)
        others = len(account.clients) - (client is not None and client.id in account.clients) if account is not None else 0
        if others >= self._quota.connections:
            raise TooManyConnectionsError(
                f"{principal.name} has {self._quota.connections} connections, as many as one may", retry_after_s=5
            )

    def check_subscription(self, client: Client) -> None:
        """Refuse one more subscription to a principal that has as many as it may.

        :raises QuotaExceededError: then.
        """
        _, principal = self._inside[client.id]
        limit = self._quota.subscriptions
        if sum(len(of.subscriptions) for of in self._accounts[principal.id].clients.values()) >= limit:
            raise QuotaExceededError(f"{principal.name} has {limit} subscriptions, as many as one may; end one first")

    def check_keys(self, client: Client, terms: Terms) -> None:
        """Refuse a filter with a key set that is too much beside the others of the principal.

        :raises QuotaExceededError: then.
        """
        if not terms.keys:
            return
        _, principal = self._inside[client.id]
        subscriptions = (held for of in self._accounts[principal.id].clients.values() for held in of.subscriptions.values())
        if sum(subscription.terms.keys for subscription in subscriptions) + terms.keys > self._quota.keys:
            raise QuotaExceededError(f"the filters of {principal.name} would have more than {self._quota.keys} keys; end some first")

    def let_in(self, client: Client, principal: Principal) -> None:
        """Note who is behind a connection."""
        self.leave(client)
        account = self._accounts.setdefault(principal.id, _Account(self._quota.bytes_per_s))
        account.clients[client.id] = client
        client.principal = principal.name
        client.quota = account.pace
        self._inside[client.id] = (client, principal)

    def leave(self, client: Client) -> None:
        """Forget a connection."""
        _, principal = self._inside.pop(client.id, (client, None))
        if principal is not None:
            account = self._accounts[principal.id]
            del account.clients[client.id]
            if not account.clients:
                del self._accounts[principal.id]

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            await self.look()

    async def look(self) -> None:
        """Close the connections of those that may read no longer."""
        clients: dict[tuple[str, str], list[Client]] = {}
        principals: dict[tuple[str, str], Principal] = {}
        for client, principal in self._inside.values():
            key = (principal.kind.value, principal.credential)
            clients.setdefault(key, []).append(client)
            principals[key] = principal
        keys = list(principals)
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            renewed = await asyncio.gather(*(self._doorkeeper.renew(principals[key]) for key in some))
            for now, behind in zip(renewed, some, strict=True):
                if now is None or not now.may(Permission.STREAM_READ):
                    self._close(clients[behind])

    def _close(self, clients: list[Client]) -> None:
        for client in clients:
            self._hub.dismiss(client, Close.UNAUTHORIZED, "the key or session has ended, or may not read the stream any more")
