"""The requests of one client, from JSON text to the answer; the first may authenticate it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from mev.auth.credentials import Credential
from mev.auth.model import Principal
from mev.core.errors import MevError, UnavailableError
from mev.core.token_bucket import TokenBucket
from mev.limits.shedding import RateLimitedError
from mev.realtime import messages
from mev.realtime.access import StreamAccess
from mev.realtime.client import Client
from mev.realtime.errors import StreamUnauthorizedError, UnsupportedError
from mev.realtime.hub import Hub
from mev.realtime.link import CloseCode
from mev.realtime.message_fields import Fields
from mev.realtime.subscriber import Subscriber

_LONG = 64 * 1024
Identify = Callable[[Credential], Awaitable[Principal]]


class RequestHandler:
    """Answers a client's messages.

    Until the client is authenticated, only `auth` is accepted; `identify` checks its credential.
    """

    def __init__(
        self,
        hub: Hub,
        client: Client,
        access: StreamAccess,
        identify: Identify,
        principal: Principal | None,
    ) -> None:
        self._hub = hub
        self._client = client
        self._access = access
        self._subscriber = Subscriber(hub, client, access)
        self._identify_credential = identify
        rate = hub.limits.messages_per_s
        self._messages = TokenBucket(rate, rate, asyncio.get_running_loop().time)
        if principal is not None:
            access.register(client, principal)

    def receive_text(self, text: bytes) -> Coroutine[None, None, None] | None:
        """Handle one text message; the result, if any, must be awaited before the next message."""
        if self._client.closing:
            return None
        if len(text) > _LONG and self._client.principal is not None:
            return self._handle_long(text)
        fields: Fields = {}
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
        """Handle a message with a large key set, checking it in a thread."""
        fields: Fields = {}
        try:
            fields = await asyncio.to_thread(messages.decode, text)
            self._admit(fields)
            request = await asyncio.to_thread(messages.read, fields, self._hub.types)
            if isinstance(request, messages.Update):
                before = self._hub.subscription(self._client, request.id).options
                self._subscriber.update(
                    request.id, await asyncio.to_thread(request.options, before, self._hub.types)
                )
                return
            work = self._handle(fields, request)
        except MevError as error:
            self._refuse(error, fields)
        else:
            if work is not None:
                await work

    def _admit(self, fields: Fields) -> None:
        """Refuse messages above the rate limit, and any but `auth` before authentication."""
        if self._client.principal is None and fields.get("op") != "auth":
            raise StreamUnauthorizedError(_AUTH_FIRST)
        if self._messages.take():
            raise RateLimitedError(
                f"more than {self._hub.limits.messages_per_s} messages a second; wait a moment",
                retry_after_s=1,
            )

    def _handle(
        self, fields: Fields, request: messages.Request
    ) -> Coroutine[None, None, None] | None:
        client = self._client
        if isinstance(request, messages.Auth):
            return self._authenticate(Credential(request.credential.encode(errors="surrogatepass")))
        match request:
            case messages.Subscribe():
                work = self._subscriber.subscribe(request)
                return self._finish(work, request) if work is not None else None
            case messages.Update():
                before = self._hub.subscription(client, request.id).options
                self._subscriber.update(request.id, request.options(before, self._hub.types))
            case messages.Unsubscribe():
                ended = self._hub.unsubscribe(client, request.id)
                client.answer(
                    messages.unsubscribed(request.id, ended.sent, ended.lost, ended.dropped)
                )
            case messages.Ping():
                client.answer(messages.pong(fields))
        return None

    async def _finish(self, work: Coroutine[None, None, None], request: messages.Subscribe) -> None:
        try:
            await work
        except MevError as error:
            self._refuse(error, {"id": request.id})

    def _authenticate(self, credential: Credential) -> Coroutine[None, None, None] | None:
        principal = self._access.known(credential)
        if principal is None:
            return self._identify(credential)
        self._accept(principal)
        return None

    async def _identify(self, credential: Credential) -> None:
        try:
            principal = await self._identify_credential(credential)
        except TimeoutError:
            self._reject(UnavailableError("the credential could not be checked in time; try again"))
        except MevError as error:
            self._reject(error)
        else:
            self._accept(principal)

    def _accept(self, principal: Principal) -> None:
        if self._client.closing:
            return
        try:
            self._access.check(principal, self._client)
        except MevError as error:
            self._reject(error)
        else:
            self._access.register(self._client, principal)
            self._client.answer(messages.authenticated())

    def _reject(self, error: MevError) -> None:
        """Answer with the reason, and close the connection."""
        self._client.answer(messages.error(error))
        self._hub.disconnect(
            self._client, _CLOSE_CODES.get(error.status, CloseCode.TRY_AGAIN_LATER), error.detail
        )

    def _refuse(self, error: MevError, fields: Fields) -> None:
        if self._client.principal is None and not isinstance(error, StreamUnauthorizedError):
            # Unauthenticated clients get no other error.
            error = StreamUnauthorizedError(_AUTH_FIRST)
        self._client.answer(messages.error(error, fields))
        if isinstance(error, StreamUnauthorizedError):
            self._hub.disconnect(self._client, CloseCode.UNAUTHORIZED, error.detail)


_CLOSE_CODES = {401: CloseCode.UNAUTHORIZED, 403: CloseCode.POLICY}
_AUTH_FIRST = (
    'authenticate first: {"op": "auth", "api_key": "..."}, or send X-API-Key with the request'
)
