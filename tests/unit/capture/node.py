"""A Solana node played by a real HTTP server on the loopback."""

import http.server
from collections.abc import Callable
from typing import Any

import orjson

Reply = dict[str, Any] | tuple[int, dict[str, str], bytes]


class Node:
    """A fake node: each method answers from a queue, or from its default."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[Any]]] = []
        self.queued: dict[str, list[Reply]] = {}
        self.default: dict[str, Callable[[list[Any]], Reply]] = {
            "getSlot": lambda _params: {"result": 105},
            "getBlock": lambda params: {"result": {"parentSlot": params[0] - 1, "transactions": []}},
        }
        node = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = node.reply(request["method"], request["params"])
                status, headers, body = reply if isinstance(reply, tuple) else (200, {}, orjson.dumps(reply))
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
        return queue.pop(0) if queue else self.default[method](params)
