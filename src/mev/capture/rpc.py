"""Ask a Solana node over JSON-RPC, politely.

Failures are retried with growing pauses, a node that says when to come back (``Retry-After``) is believed, and requests
keep a distance so that a rate limit is not provoked. The node's URL is shown without path and query, which hold keys.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from mev.capture.model import BadInputError
from mev.core.errors import UnavailableError

NODE_BUSY = frozenset({-32005, 429, -32429})  # behind, or limiting the rate without saying so in HTTP
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500


class RpcError(UnavailableError):
    """The Solana node cannot be used."""

    code = "solana_rpc"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node said: a result, or the code and text of its error."""

    result: Any = None
    code: int | None = None
    message: str = ""


class Client:
    """Asks one node, politely; blocks while it waits."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        attempts: int = 10,
        first_pause_s: float = 0.25,
        longest_pause_s: float = 30.0,
        requests_per_second: float = 10.0,
        max_body_bytes: int = 256 << 20,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Set up a client.

        ``timeout_s`` bounds each step of a request, ``attempts`` is how often one request is tried before
        :class:`RpcError`, the pauses between grow from ``first_pause_s`` to ``longest_pause_s`` and a ``Retry-After`` is
        kept up to the latter. ``requests_per_second`` is the most this client asks.
        """
        try:
            self._http = httpx.Client(timeout=timeout_s, headers={"Content-Type": "application/json"})
            self._url = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise BadInputError(f"the node's URL is none: {error}") from None
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise BadInputError("the node's URL is none: expected http:// or https://, then a host")
        self._attempts = attempts
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._distance_s = 1 / requests_per_second
        self._max_body_bytes = max_body_bytes
        self._sleep = sleep
        self._next_at = 0.0

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def slot(self, commitment: str) -> int:
        """Return the newest slot."""
        answer = self.call("getSlot", [{"commitment": commitment}])
        if not isinstance(answer.result, int):
            raise RpcError(f"{self._shown}: getSlot answered {answer.message or answer.result!r}, not a slot")
        return answer.result

    def call(self, method: str, params: list[Any]) -> Answer:
        """Return the node's answer, its refusals included; raise :class:`RpcError` when it gives none."""
        body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        reason = ""
        for attempt in range(self._attempts):
            self._keep_distance()
            answer, wait_s = self._try(body)
            if answer is not None and answer.code not in NODE_BUSY:
                return answer
            reason = answer.message if answer is not None else wait_s[1]
            if attempt + 1 < self._attempts:
                self._sleep(self._pause_s(attempt, wait_s[0]))
        raise RpcError(f"{self._shown}: {method} failed {self._attempts} times, last: {reason}")

    @property
    def _shown(self) -> str:
        # Providers put their keys into path and query, or before the host.
        return f"{self._url.scheme}://{self._url.netloc.decode()}"

    def _keep_distance(self) -> None:
        now = time.monotonic()
        if now < self._next_at:
            self._sleep(self._next_at - now)
        self._next_at = max(now, self._next_at) + self._distance_s

    def _pause_s(self, attempt: int, asked_s: float | None) -> float:
        if asked_s is not None:
            return min(asked_s, self._longest_pause_s)
        pause_s = min(self._first_pause_s * 2.0**attempt, self._longest_pause_s)
        # Followers of one node should not come back all at once.
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311

    def _try(self, body: bytes) -> tuple[Answer | None, tuple[float | None, str]]:
        """Return the answer, or how long the node asks to wait and what went wrong."""
        try:
            with self._http.stream("POST", self._url, content=body) as response:
                wait_s = _retry_after_s(response.headers.get("Retry-After"))
                if response.status_code == _TOO_MANY_REQUESTS or response.status_code >= _SERVER_ERROR:
                    return None, (wait_s, f"HTTP {response.status_code}")
                content = self._content(response)
        except httpx.TransportError as error:
            return None, (None, str(error) or type(error).__name__)
        try:
            parsed = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            if response.is_success:
                return None, (None, f"not JSON: {error.msg}")
            raise RpcError(f"{self._shown}: HTTP {response.status_code}") from None
        return _answer(parsed), (wait_s, "")

    def _content(self, response: httpx.Response) -> bytes:
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > self._max_body_bytes:
                raise RpcError(f"{self._shown}: an answer larger than {self._max_body_bytes} bytes")
        return bytes(content)


def _answer(parsed: Any) -> Answer:
    if not isinstance(parsed, dict):
        return Answer(code=0, message="not a JSON-RPC answer")
    error = parsed.get("error")
    if isinstance(error, dict):
        code = error.get("code")
        return Answer(code=code if isinstance(code, int) else 0, message=f"{error.get('message', '')} ({code})")
    return Answer(result=parsed.get("result"))


def _retry_after_s(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date, which nodes do not send, counts as none."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
