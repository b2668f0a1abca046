"""Run Autobahn's WebSocket server tests against this server: `python tools/autobahn.py PYTHON2`.

The suite, autobahntestsuite 0.8.2, needs Python 2.7: `PYTHON2 -m pip install
autobahntestsuite==0.8.2` (in a virtual environment of Python 2.7). It expects its messages back, so
the server runs with a session that echoes; everything below the session is the product's. Prints
the number of cases by outcome and the names of those that are not OK; fails when one failed. Cases
12 and 13, compressed messages, are left out.
"""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import uvicorn

from mev.auth.browser import Origins
from mev.auth.model import Principal
from mev.realtime.access import StreamAccess
from mev.realtime.client import Client
from mev.realtime.hub import Hub
from mev.realtime.limits import HubLimits
from mev.realtime.requests import Identify, RequestHandler
from mev.realtime.websocket import protocol
from mev.realtime.websocket.connection import WebSocket
from mev.realtime.websocket.handshake import Policy, Upgrade
from mev.realtime.websocket.protocol import Message, Opcode
from mev.wire.registry import EVENT_TYPES

_PORT = 19_001
_LARGEST = 64 << 20  # the suite sends 16 MiB
_PASSED = {"OK", "INFORMATIONAL"}


class Anybody:
    """Lets everybody in."""

    def check(self, principal: Principal, client: Client | None = None) -> None:
        """Refuse nobody."""

    def leave(self, client: Client) -> None:
        """Forget a connection."""

    def count_stranger(self, peer: str, headers: object) -> None:
        """Count nobody."""

    def identify(self, *_: object, **__: object) -> None:
        """Know nobody."""


class Echo:
    """Sends every text message back."""

    def __init__(self, link: WebSocket) -> None:
        self._link = link

    def receive_text(self, text: bytes) -> None:
        """Send it back."""
        self._link.send_text(text)


class EchoServer(WebSocket):
    """The server's WebSocket with another handler of requests."""

    def _accept(self, upgrade: Upgrade, identify: Identify, principal: Principal | None) -> None:
        super()._accept(upgrade, identify, principal)
        self._requests = cast("RequestHandler", Echo(self))
        if self._client is not None:
            self._client.principal = "autobahn"
            self._raise_limit(self._client)

    def _dispatch(self, client: Client, message: Message) -> None:
        if message.opcode is Opcode.BINARY:
            self._write(protocol.frame(Opcode.BINARY, message.payload))
        else:
            super()._dispatch(client, message)


async def _serve() -> uvicorn.Server:
    hub = Hub(
        EVENT_TYPES,
        HubLimits(message_bytes=_LARGEST, unauthenticated_bytes=_LARGEST, auth_timeout_s=3600),
    )
    policy = Policy(path="/", origins=Origins(), deflate=False)

    class Bound(EchoServer):
        def __init__(self, *, config: Any, server_state: Any, app_state: Any) -> None:
            del config, app_state
            super().__init__(hub, cast("StreamAccess", Anybody()), policy, server_state.connections)

    config = uvicorn.Config(
        _nothing, port=_PORT, ws=Bound, http="httptools", lifespan="off", log_config=None
    )
    return uvicorn.Server(config)


async def _nothing(scope: object, receive: object, send: object) -> None:
    del scope, receive, send


async def _run(python2: str) -> Mapping[str, Mapping[str, str]]:
    server = await _serve()
    serving = asyncio.create_task(server.serve())
    with tempfile.TemporaryDirectory() as folder:
        url = f"ws://127.0.0.1:{_PORT}/"
        spec = {
            "outdir": folder,
            "servers": [{"agent": "mev", "url": url}],
            "cases": ["*"],
            "exclude-cases": ["12.*", "13.*"],
        }
        (Path(folder) / "spec.json").write_text(json.dumps({**spec, "exclude-agent-cases": {}}))
        suite = [
            "-c",
            "from autobahntestsuite.wstest import run; run()",
            "-m",
            "fuzzingclient",
            "-s",
            f"{folder}/spec.json",
        ]
        process = await asyncio.create_subprocess_exec(python2, *suite, cwd=folder)
        await process.wait()
        server.should_exit = True
        await serving
        found: Mapping[str, Mapping[str, str]] = json.loads(
            (Path(folder) / "index.json").read_text()
        )["mev"]
    return found


def main() -> None:
    """Run the suite and print what came of it."""
    if len(sys.argv) != 2:
        sys.exit(
            "usage: python tools/autobahn.py PYTHON2, a Python 2.7 that has autobahntestsuite 0.8.2"
        )
    cases = asyncio.run(_run(sys.argv[1]))
    outcomes = Counter(case["behavior"] for case in cases.values())
    others = {name: case["behavior"] for name, case in cases.items() if case["behavior"] != "OK"}
    counts = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
    print(f"{len(cases)} cases: {counts}")  # noqa: T201
    for name, outcome in others.items():
        print(f"{name}: {outcome}")  # noqa: T201
    sys.exit(0 if outcomes.keys() <= _PASSED else 1)


if __name__ == "__main__":
    main()
