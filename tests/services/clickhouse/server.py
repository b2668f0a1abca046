"""Stand-in for the HTTP interface of a ClickHouse server, over the engine in this process.

Run as ``python -m tests.services.clickhouse.server PORT FOLDER USER PASSWORD``.

It supports what clickhouse-connect's HTTP client needs. Not supported: sessions, progress headers,
external tables, form-encoded queries, the Native format's revisions, streaming (an answer is
complete or an error).
"""

import base64
import hmac
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.services.clickhouse import compression
from tests.services.clickhouse.engine import Engine, EngineError, Result

# URL parameters of the interface itself; all others are settings of the statement.
_TRANSPORT = {
    "buffer_size", "client_protocol_version", "compress", "database", "decompress",
    "default_format", "password", "query", "query_id", "quota_key", "role", "session_check",
    "session_id", "session_timeout", "user", "wait_end_of_query",
}  # fmt: skip
_PARAMETER = "param_"
_AUTHENTICATION_FAILED = 516
_UNKNOWN_ENCODING = 89
_STATUS = {62: 400, 27: 400, 60: 404, 81: 404, 115: 404, _AUTHENTICATION_FAILED: 403, 497: 403}


class Interface:
    """Answers requests of `user` with `password` out of `engine`."""

    def __init__(self, engine: Engine, user: str, password: str) -> None:
        self._engine = engine
        self._user = user
        self._password = password

    async def ping(self, _request: Request) -> Response:
        """Say that it serves; no password is needed."""
        return PlainTextResponse("Ok.\n")

    async def query(self, request: Request) -> Response:
        """Run one statement, from the URL, the body, or begun in one and ended in the other."""
        query_id = request.query_params.get("query_id") or str(uuid.uuid4())
        common = {"X-ClickHouse-Query-Id": query_id, "X-ClickHouse-Timezone": self._engine.timezone}
        try:
            self._authenticate(request)
            result = await run_in_threadpool(
                self._run, request.query_params, request.headers, await request.body()
            )
        except EngineError as error:
            headers = {**common, "X-ClickHouse-Exception-Code": str(error.code)}
            text = f"{error.text} (version {self._engine.version})\n"
            return PlainTextResponse(text, _STATUS.get(error.code, 500), headers)
        return self._answer(request, result, common)

    def _authenticate(self, request: Request) -> None:
        user, password = _credentials(request)
        right = hmac.compare_digest(
            f"{user}\0{password}".encode(), f"{self._user}\0{self._password}".encode()
        )
        if not right:
            raise EngineError(
                f"Code: {_AUTHENTICATION_FAILED}. DB::Exception: {user}: Authentication failed:"
                " password is incorrect, or there is no user with such name."
                " (AUTHENTICATION_FAILED)"
            )

    def _run(self, url: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Result:
        try:
            data = compression.decode(body, headers.get("content-encoding", ""))
        except compression.UnknownEncodingError as error:
            raise EngineError(
                f"Code: {_UNKNOWN_ENCODING}. DB::Exception: {error}. (UNKNOWN_COMPRESSION_METHOD)"
            ) from None
        statement = b"\n".join(part for part in (url.get("query", "").encode(), data) if part)
        settings = {
            name: value
            for name, value in url.items()
            if name not in _TRANSPORT and not name.startswith(_PARAMETER)
        }
        parameters = {
            name.removeprefix(_PARAMETER): value
            for name, value in url.items()
            if name.startswith(_PARAMETER)
        }
        return self._engine.run(statement, settings, parameters, url.get("database", ""))

    def _answer(self, request: Request, result: Result, common: Mapping[str, str]) -> Response:
        headers = {**common, "X-ClickHouse-Summary": result.summary}
        if result.format:
            headers["X-ClickHouse-Format"] = result.format
        body = result.body
        if request.query_params.get("enable_http_compression", self._engine.compresses) == "1":
            body, encoding = compression.encode(body, request.headers.get("accept-encoding", ""))
            if encoding:
                headers["Content-Encoding"] = encoding
        return Response(
            body, headers=headers, media_type="text/tab-separated-values; charset=UTF-8"
        )


def _credentials(request: Request) -> tuple[str, str]:
    headers, url = request.headers, request.query_params
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        return user, password
    user = headers.get("x-clickhouse-user") or url.get("user") or "default"
    return user, headers.get("x-clickhouse-key") or url.get("password") or ""


def application(engine: Engine, user: str, password: str) -> Starlette:
    """Return the interface as an ASGI application that closes the engine when it ends."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        engine.close()

    interface = Interface(engine, user, password)
    routes = [Route("/ping", interface.ping), Route("/", interface.query, methods=["GET", "POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> None:
    """Serve until a signal says otherwise."""
    port, folder, user, password = sys.argv[1:]
    app = application(Engine(Path(folder)), user, password)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        log_level="warning",
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
