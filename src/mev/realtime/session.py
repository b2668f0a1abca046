"""The conversation with one client: who it is, what it asks, what it is answered."""

from collections.abc import Awaitable, Callable, Coroutine

from mev.auth.credentials import Credential
from mev.auth.model import Principal
from mev.core.errors import MevError, UnavailableError
from mev.realtime import messages
from mev.realtime.client import Client
from mev.realtime.errors import UnauthorizedError, UnsupportedError
from mev.realtime.guard import Guard
from mev.realtime.hub import Hub
from mev.realtime.websocket import Close

Identify = Callable[[Credential], Awaitable[Principal]]


class Session:
    """Answer a client's messages; until it is authenticated, only `auth` is heard, and `identify` says whose credential it gives."""

    def __init__(self, hub: Hub, client: Client, guard: Guard, identify: Identify, principal: Principal | None) -> None:
        self._hub = hub
        self._client = client
        self._guard = guard
        self._identify_sender = identify
        if principal is not None:
            guard.let_in(client, principal)

    def receive_text(self, text: bytes) -> Coroutine[None, None, None] | None:
        """Handle one text message; what is returned is to be awaited before the next one is handled."""
        if self._client.closing:
            return None
        fields: messages.Fields = {}
        try:
            fields = messages.decode(text)
            return self._handle(fields)
        except MevError as error:
            self._refuse(error, fields)
            return None

    def receive_binary(self) -> None:
        """Refuse a binary message: control messages are text in both encodings."""
        if not self._client.closing:
            self._refuse(UnsupportedError("control messages are JSON text"), {})

    def _handle(self, fields: messages.Fields) -> Coroutine[None, None, None] | None:
        request = messages.read(fields, self._hub.topics)
        if isinstance(request, messages.Auth):
            return self._log_in(Credential(request.api_key.encode(errors="surrogatepass")))
        if self._client.principal is None:
            raise UnauthorizedError(_AUTH_FIRST)
        if isinstance(request, messages.Subscribe):
            self._hub.subscribe(self._client, request.id, request.topics)
            self._client.answer(messages.subscribed(request.id, request.topics))
        elif isinstance(request, messages.Unsubscribe):
            lost = self._hub.unsubscribe(self._client, request.id)
            self._client.answer(messages.unsubscribed(request.id, lost))
        else:
            self._client.answer(messages.pong(fields))
        return None

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
            self._guard.check(principal)
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
