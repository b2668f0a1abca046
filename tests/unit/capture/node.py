"""A Solana node played by a real HTTP server on the loopback."""

import http.server
from collections.abc import Callable
from typing import Any

import orjson

Reply = dict[str, Any] | tuple[int, dict[str, str], bytes]


class Node:
    """A fake node: each method answers from a queue, or from its default.

    Its blocks follow on the last slot that it has not reported as skipped.
    """

    def __init__(self) -> None:
        self._skipped: set[int] = set()
        self.asked: list[tuple[str, list[Any]]] = []
        self.path = ""
        self.queued: dict[str, list[Reply]] = {}
        self.default: dict[str, Callable[[list[Any]], Reply]] = {
            "getSlot": lambda _params: {"result": 105},
            "getBlock": lambda params: {
                "result": {"parentSlot": self._parent(params[0]), "transactions": []}
            },
        }
        node = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                node.path = self.path
                reply = node.reply(request["method"], request["params"])
                status, headers, body = (
                    reply if isinstance(reply, tuple) else (200, {}, orjson.dumps(reply))
                )
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/key"

    def reply(self, method: str, params: list[Any]) -> Reply:
        self.asked.append((method, params))
        queue = self.queued.get(method)
        reply = queue.pop(0) if queue else self.default.get(method, _not_found)(params)
        text = str(reply)
        if method == "getBlock" and ("-32007" in text or "-32009" in text):
            self._skipped.add(params[0])
        return reply

    def _parent(self, slot: int) -> int:
        return max(set(range(max(0, slot - 200), slot)) - self._skipped)


def _not_found(_params: list[Any]) -> Reply:
    return {"error": {"code": -32601, "message": "Method not found"}}


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def read(self) -> float:
        return self.now_s
