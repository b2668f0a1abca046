"""``GET /api/health/`` as bare ASGI: is this process alive."""

from mev.core import asgi

PATH = "/api/health/"
_ALIVE = b'{"status":"ok"}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_ALIVE)), (b"cache-control", b"no-store")]
_START = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
_BODY = {"type": "http.response.body", "body": _ALIVE}

OPENAPI = {
    "tags": ["health"],
    "summary": "Say that the process is alive",
    "responses": {"200": {"description": "Alive.", "content": {"application/json": {"example": {"status": "ok"}}}}},
}


async def health_lane(_scope: asgi.Scope, _receive: asgi.Receive, send: asgi.Send) -> None:
    """Answer that the process is alive."""
    await send(_START)
    await send(_BODY)
