"""The conversation with one client: who it is, what it asks, what it is answered."""

from collections.abc import Callable

from mev.core.errors import MevError
from mev.realtime import messages
from mev.realtime.client import Client
from mev.realtime.errors import UnauthorizedError, UnsupportedError
from mev.realtime.hub import Hub
from mev.realtime.websocket import Close

Authenticate = Callable[[str], bool]

PRINCIPAL = "master"


class Session:
    """Answer a client's messages; until it is authenticated, only `auth` is heard."""

    def __init__(self, hub: Hub, client: Client, authenticate: Authenticate, *, authenticated: bool) -> None:
        self._hub = hub
        self._client = client
        self._authenticate = authenticate
        if authenticated:
            client.principal = PRINCIPAL

    def receive_text(self, text: bytes) -> None:
        """Handle one text message."""
        if self._client.closing:
            return
        fields: messages.Fields = {}
        try:
            fields = messages.decode(text)
            self._handle(fields)
        except MevError as error:
            self._refuse(error, fields)

    def receive_binary(self) -> None:
        """Refuse a binary message: control messages are text in both encodings."""
        if not self._client.closing:
            self._refuse(UnsupportedError("control messages are JSON text"), {})

    def _handle(self, fields: messages.Fields) -> None:
        request = messages.read(fields, self._hub.topics)
        if isinstance(request, messages.Auth):
            self._log_in(request)
        elif self._client.principal is None:
            raise UnauthorizedError(_AUTH_FIRST)
        elif isinstance(request, messages.Subscribe):
            self._hub.subscribe(self._client, request.id, request.topics)
            self._client.answer(messages.subscribed(request.id, request.topics))
        elif isinstance(request, messages.Unsubscribe):
            lost = self._hub.unsubscribe(self._client, request.id)
            self._client.answer(messages.unsubscribed(request.id, lost))
        else:
            self._client.answer(messages.pong(fields))

    def _log_in(self, request: messages.Auth) -> None:
        if not self._authenticate(request.api_key):
            raise UnauthorizedError("this API key is not valid")
        self._client.principal = PRINCIPAL
        self._client.answer(messages.authenticated())

    def _refuse(self, error: MevError, fields: messages.Fields) -> None:
        if self._client.principal is None and not isinstance(error, UnauthorizedError):
            # A stranger learns nothing but that it is one.
            error = UnauthorizedError(_AUTH_FIRST)
        self._client.answer(messages.error(error, fields))
        if isinstance(error, UnauthorizedError):
            self._hub.dismiss(self._client, Close.UNAUTHORIZED, error.detail)


_AUTH_FIRST = 'first say who you are: {"op": "auth", "api_key": "..."}, or send X-API-Key with the request'
