"""A scripted API on a real socket, and commands that find it like a running system."""

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from mev.cli.main import app
from mev.core.errors import MevError
from mev.store.folder import DataFolder, Runtime


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


BUSY = Answer({"detail": "the server is busy; send again in a moment"}, 503, {"Retry-After": "1"})


class ScriptedApi:
    """Answers `METHOD /path` with what was told for it, one after another; the last one stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = DataFolder(folder)
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.pauses: list[float] = []
        self.on_pause: Callable[[], None] = lambda: None
        self._answers: dict[str, list[Answer]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.found()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def found(self) -> None:
        """Let commands find it."""
        self.folder.path.mkdir(exist_ok=True)
        self.folder.write_runtime(
            Runtime(pid=os.getpid(), api=self.url, kafka="", kafka_embedded=True)
        )

    def lost(self) -> None:
        """Let no command find it, as when it is being started again."""
        (self.folder.path / "runtime.json").unlink()

    def tell(self, request: str, *answers: Answer | dict[str, Any]) -> None:
        """Answer `request`, such as `GET /api/jobs`, like that."""
        self._answers[request] = [
            one if isinstance(one, Answer) else Answer(one) for one in answers
        ]

    def run(self, *arguments: str) -> Result:
        """Run a command; raise what it raises."""
        done = CliRunner().invoke(app, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def refused(self, *arguments: str) -> tuple[MevError, Result]:
        """Run a command that fails, and return how."""
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, MevError), done.output
        return done.exception, done

    def _answer(self, request: str) -> Answer:
        answers = self._answers.get(request) or [
            Answer({"detail": f"nothing was told of {request}"}, 404)
        ]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say()

            do_POST = do_DELETE = do_PUT = do_GET  # noqa: N815 - their names

            def log_message(self, *_: object) -> None:
                pass

            def _say(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                api.headers.append(dict(self.headers))
                api.asked.append(
                    (f"{self.command} {self.path}", json.loads(body) if body else None)
                )
                answer = api._answer(f"{self.command} {self.path.partition('?')[0]}")
                content = (
                    answer.body
                    if isinstance(answer.body, bytes)
                    else json.dumps(answer.body).encode()
                )
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        return Handler
