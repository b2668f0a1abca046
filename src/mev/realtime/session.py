"""The conversation with one client: who it is, what it asks, what it is answered."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from mev.auth.credentials import Credential
from mev.auth.model import Principal
from mev.core.errors import MevError, UnavailableError
from mev.limits.errors import RateLimitedError
from mev.realtime import messages
from mev.realtime.client import Client
from mev.realtime.errors import InvalidFieldError, UnauthorizedError, UnsupportedError
from mev.realtime.guard import Guard
from mev.realtime.hub import Hub
from mev.realtime.pace import Allowance
from mev.realtime.past import PastReader, Pool
from mev.realtime.start import Beginning, Live, Outcome, Past
from mev.realtime.terms import Delivery, OnSlow, Terms
from mev.realtime.websocket import Close

_LONG = 64 * 1024
Identify = Callable[[Credential], Awaitable[Principal]]


class Session:
    """Answer a client's messages; until it is authenticated, only `auth` is heard, and `identify` says whose credential it gives."""

    def __init__(self, hub: Hub, client: Client, guard: Guard, identify: Identify, principal: Principal | None) -> None:
        self._hub = hub
        self._client = client
        self._guard = guard
        self._identify_sender = identify
        self._pace = Allowance(hub.limits.messages_per_s)
        if principal is not None:
            guard.let_in(client, principal)

    def receive_text(self, text: bytes) -> Coroutine[None, None, None] | None:
        """Handle one text message; what is returned is to be awaited before the next one is handled."""
        if self._client.closing:
            return None
        if len(text) > _LONG and self._client.principal is not None:
            return self._handle_long(text)
        fields: messages.Fields = {}
        try:
            fields = messages.decode(text)
            self._admit(fields)
            return self._handle(fields, messages.read(fields, self._hub.types))
        except MevError as error:
            self._refuse(error, fields)
            return None

    def receive_binary(self) -> None:
        """Refuse a binary message: control messages are text in both encodings."""
        if not self._client.closing:
            self._refuse(UnsupportedError("control messages are JSON text"), {})

    async def _handle_long(self, text: bytes) -> None:
        """Handle a message with a large key set; checking it takes so long that nobody else should wait for it."""
        fields: messages.Fields = {}
        try:
            fields = await asyncio.to_thread(messages.decode, text)
            self._admit(fields)
            request = await asyncio.to_thread(messages.read, fields, self._hub.types)
            if isinstance(request, messages.Update):
                before = self._hub.subscription(self._client, request.id).terms
                self._update(request.id, await asyncio.to_thread(request.terms, before, self._hub.types))
                return
            work = self._handle(fields, request)
        except MevError as error:
            self._refuse(error, fields)
        else:
            if work is not None:
                await work

    def _admit(self, fields: messages.Fields) -> None:
        """Refuse what is not looked at: anything but `auth` of a stranger, and more than may be asked in a second."""
        if self._client.principal is None and fields.get("op") != "auth":
            raise UnauthorizedError(_AUTH_FIRST)
        if self._pace.left(asyncio.get_running_loop().time()) < 1:
            raise RateLimitedError(f"more than {self._hub.limits.messages_per_s} messages a second; wait a moment", retry_after_s=1)
        self._pace.spend(1)

    def _handle(self, fields: messages.Fields, request: messages.Request) -> Coroutine[None, None, None] | None:
        client = self._client
        if isinstance(request, messages.Auth):
            return self._log_in(Credential(request.credential.encode(errors="surrogatepass")))
        match request:
            case messages.Subscribe():
                return self._subscribe(request)
            case messages.Update():
                before = self._hub.subscription(client, request.id).terms
                self._update(request.id, request.terms(before, self._hub.types))
            case messages.Unsubscribe():
                client.answer(messages.unsubscribed(request.id, self._hub.unsubscribe(client, request.id)))
            case messages.Ping():
                client.answer(messages.pong(fields))
        return None

    def _subscribe(self, request: messages.Subscribe) -> Coroutine[None, None, None] | None:
        self._hub.check_id(self._client, request.id)
        self._guard.check_subscription(self._client)
        self._guard.check_keys(self._client, request.terms)
        terms = request.terms
        self._check_datagrams(terms)
        if terms.delivery is Delivery.DATAGRAM and not isinstance(request.start, Live):
            raise InvalidFieldError("datagrams are live; leave from out", field="from")
        if isinstance(request.start, Live):
            self._hub.subscribe(self._client, request.id, terms)
            self._confirm("subscribed", request.id, terms, self._live(terms))
            return None
        pool = self._hub.past
        if pool is None:
            raise UnsupportedError("this server keeps no past; start live", field="from")
        return self._subscribe_from(request, request.start, pool, pool.reader())

    async def _subscribe_from(self, request: messages.Subscribe, start: Past, pool: Pool, reader: PastReader) -> None:
        """Subscribe where the past is to be read first."""
        try:
            types = [self._hub.types[name] for name in sorted(request.terms.topics)]
            beginning = await reader.begin(start, types, self._hub.log)
        except MevError as error:
            reader.close()
            self._refuse(error, {"id": request.id})
        except BaseException:
            reader.close()
            raise
        else:
            if self._client.closing:
                reader.close()
                return
            self._confirm("subscribed", request.id, request.terms, beginning)
            self._hub.subscribe_from(self._client, request.id, request.terms, dict(beginning.positions), pool, reader)

    def _update(self, subscription_id: str, terms: Terms) -> None:
        self._check_datagrams(terms)
        self._guard.check_keys(self._client, terms)
        subscription = self._hub.update(self._client, subscription_id, terms)
        outcome = Outcome.RESUMED if subscription.behind else Outcome.LIVE
        self._confirm("updated", subscription_id, terms, Beginning(outcome=outcome, positions=dict(self._hub.unsent(subscription))))

    def _check_datagrams(self, terms: Terms) -> None:
        if terms.delivery is not Delivery.DATAGRAM:
            return
        if not self._client.link.datagram_bytes():
            raise UnsupportedError("datagrams need WebTransport, and a peer that takes them", field="delivery")
        if terms.on_slow is OnSlow.LOSSLESS:
            raise InvalidFieldError('datagrams may be lost: not "lossless"', field="on_slow")

    def _live(self, terms: Terms) -> Beginning:
        topics = {self._hub.types[name].topic for name in terms.topics}
        return Beginning(outcome=Outcome.LIVE, positions={at: offset for at, offset in self._hub.positions.items() if at[0] in topics})

    def _confirm(self, op: str, subscription_id: str, terms: Terms, beginning: Beginning) -> None:
        self._client.answer(messages.subscribed(op, subscription_id, terms, beginning, self._hub.log, self._hub.types))

    def _log_in(self, credential: Credential) -> Coroutine[None, None, None] | None:
        principal = self._guard.known(credential)
        if principal is None:
            return self._identify(credential)
        self._welcome(principal)
        return None

    async def _identify(self, credential: Credential) -> None:
        try:
            principal = await self._identify_sender(credential)
        except TimeoutError:
            self._turn_away(UnavailableError("who you are could not be found out in time; try again"))
        except MevError as error:
            self._turn_away(error)
        else:
            self._welcome(principal)

    def _welcome(self, principal: Principal) -> None:
        if self._client.closing:
            return
        try:
            self._guard.check(principal, self._client)
        except MevError as error:
            self._turn_away(error)
        else:
            self._guard.let_in(self._client, principal)
            self._client.answer(messages.authenticated())

    def _turn_away(self, error: MevError) -> None:
        """Tell who wanted in why not, and close."""
        self._client.answer(messages.error(error))
        self._hub.dismiss(self._client, _CLOSE_CODES.get(error.status, Close.TRY_AGAIN_LATER), error.detail)

    def _refuse(self, error: MevError, fields: messages.Fields) -> None:
        if self._client.principal is None and not isinstance(error, UnauthorizedError):
            # A stranger learns nothing but that it is one.
            error = UnauthorizedError(_AUTH_FIRST)
        self._client.answer(messages.error(error, fields))
        if isinstance(error, UnauthorizedError):
            self._hub.dismiss(self._client, Close.UNAUTHORIZED, error.detail)


_CLOSE_CODES = {401: Close.UNAUTHORIZED, 403: Close.POLICY}
_AUTH_FIRST = 'first say who you are: {"op": "auth", "api_key": "..."}, or send X-API-Key with the request'
