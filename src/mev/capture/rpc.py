"""JSON-RPC client of a Solana node with retries and a rate limit.

Failures are retried with growing pauses, ``Retry-After`` is respected, and requests keep a minimum
interval. The node's URL is shown without path and query, which may contain keys.
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
from mev.core.text import shown

SLOT_HAS_NO_BLOCK = frozenset({-32007, -32009})  # skipped; skipped or not in long-term storage
# Errors about the slot or the request, which a retry does not change. All other codes are failures
# of the node (-32603, -32005, 429, codes of providers) and retried.
_ANSWERS = frozenset(
    {-32001, -32004, -32007, -32009, -32011, -32014, -32015, -32016, -32600, -32601, -32602}
)
_TRY_AGAIN = frozenset({408, 425, 429})
_SERVER_ERROR = 500
_LONGEST_MESSAGE = 200
_LONGEST_CODE = 10
# Requests are sequential, so all can have the same id.
_ID = 1


class RpcError(UnavailableError):
    """The Solana node cannot be used."""

    code = "solana_rpc"


class AnswerTooLargeError(RpcError):
    """The Solana node's answer is larger than allowed."""

    code = "solana_rpc_answer_too_large"


@dataclass(frozen=True, slots=True)
class RpcAnswer:
    """Answer of a node: a result, or the code and text of its error."""

    result: Any = None
    code: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Reason for a failed attempt, and the pause requested by the node."""

    reason: str
    wait_s: float | None = None


class RpcClient:
    """Client of one node with a rate limit; blocks while it waits."""

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
        """Configure a client.

        ``timeout_s`` limits each step of a request, ``attempts`` the attempts per request before
        :class:`RpcError`. Pauses grow from ``first_pause_s`` to ``longest_pause_s``, which also
        limits ``Retry-After``. ``requests_per_second`` is the rate limit.
        """
        try:
            self._http = httpx.Client(
                timeout=timeout_s, headers={"Content-Type": "application/json"}
            )
            self._url = httpx.URL(url)
            self._url.host.encode("idna")  # as in a connection attempt, which would fail each time
        except (httpx.InvalidURL, TypeError, UnicodeError) as error:
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

    def slot(self, commitment: str, *, attempts: int | None = None) -> int:
        """Return the newest slot."""
        answer = self.call("getSlot", [{"commitment": commitment}], attempts=attempts, result=_slot)
        if answer.code is not None:
            raise RpcError(f"{self._shown}: getSlot answered {answer.message}")
        slot: int = answer.result
        return slot

    def call(
        self,
        method: str,
        params: list[Any],
        *,
        attempts: int | None = None,
        result: Callable[[Any], bool] = lambda _result: True,
    ) -> RpcAnswer:
        """Return the node's answer, which may be a refusal.

        ``result`` returns whether a result is valid for the method; an invalid one counts as a
        failure of the node and is retried.

        :raises RpcError: when the node gives no answer.
        """
        body = orjson.dumps({"jsonrpc": "2.0", "id": _ID, "method": method, "params": params})
        attempts = self._attempts if attempts is None else attempts
        reason = ""
        for attempt in range(attempts):
            self._keep_distance()
            found = self._try(body)
            if isinstance(found, RpcAnswer):
                if found.code is not None or result(found.result):
                    return found
                found = _Failure(_line(f"the answer {found.result!r}"))
            reason = found.reason
            if attempt + 1 < attempts:
                self._sleep(self._pause_s(attempt, found.wait_s))
        raise RpcError(f"{self._shown}: {method} failed {attempts} times, last: {reason}")

    @property
    def _shown(self) -> str:
        # Providers put keys into path, query or user info.
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
        # Jitter, so that several followers do not retry at the same time.
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311

    def _try(self, body: bytes) -> RpcAnswer | _Failure:
        """Send one request; raise :class:`RpcError` if the node rejects the client."""
        try:
            with self._http.stream("POST", self._url, content=body) as response:
                wait_s = _retry_after_s(response.headers.get("Retry-After"))
                content = self._content(response)
        except httpx.HTTPError as error:
            # Connection errors, time-outs, broken chunks, and bodies that contradict
            # Content-Encoding.
            return _Failure(_line(str(error)) or type(error).__name__)
        found, status = _answer(content, wait_s), response.status_code
        # Some providers send a node's error about a slot with an HTTP error status.
        if response.is_success or (isinstance(found, RpcAnswer) and found.code is not None):
            return found
        if status in _TRY_AGAIN or status >= _SERVER_ERROR:
            return _Failure(f"HTTP {status}", wait_s)
        raise RpcError(f"{self._shown}: HTTP {status}")

    def _content(self, response: httpx.Response) -> bytes:
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > self._max_body_bytes:
                raise AnswerTooLargeError(
                    f"{self._shown}: an answer larger than {self._max_body_bytes} bytes"
                )
        return bytes(content)


def _slot(result: Any) -> bool:
    return type(result) is int and result >= 0


def _answer(content: bytes, wait_s: float | None) -> RpcAnswer | _Failure:
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError as broken:
        return _Failure(f"not JSON: {broken.msg}", wait_s)
    if not isinstance(parsed, dict) or not ("result" in parsed or "error" in parsed):
        return _Failure("not a JSON-RPC answer", wait_s)
    if parsed.get("id") not in (None, _ID, str(_ID)):
        return _Failure("the answer to another request", wait_s)
    refusal = parsed.get("error")
    if refusal is None:
        return RpcAnswer(result=parsed.get("result"))
    code = refusal.get("code") if isinstance(refusal, dict) else None
    text = refusal.get("message", "") if isinstance(refusal, dict) else refusal
    message = _line(f"{text} ({code})" if code is not None else str(text))
    number = error_code(code)
    return (
        RpcAnswer(code=number, message=message) if number in _ANSWERS else _Failure(message, wait_s)
    )


def error_code(code: Any) -> int | None:
    """Return the code of an error, which some providers send as text or as a decimal."""
    if isinstance(code, str) and code.isascii() and code.removeprefix("-").isdigit():
        return int(code) if len(code) <= _LONGEST_CODE else None
    if isinstance(code, float) and code.is_integer():
        return int(code)
    return code if type(code) is int else None


def _line(text: str) -> str:
    """Return a node's text as one printable line of limited length."""
    return shown(" ".join(text.split()))[:_LONGEST_MESSAGE]


def _retry_after_s(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date, which nodes do not send, is ignored."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
