"""Requests between the processes of one system, over Unix sockets that only the owner can open."""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpcore
from pydantic import TypeAdapter

from mev.core import asgi
from mev.core.errors import UnavailableError
from mev.core.files import write_atomically
from mev.host.health import Health, Readiness
from mev.host.performance import Performance
from mev.host.process import ProcessLoad, ProcessMonitor
from mev.host.source import SystemLoad, own_metrics

LOG = logging.getLogger(__name__)
ALIVE, METRICS, READINESS, RELOAD = "/alive", "/metrics", "/readiness", "/reload"
PROCESS, SYSTEM, PERFORMANCE = "/process", "/system", "/performance"
FOLDER = "workers"
"""Folder of the sockets, in the data folder."""
CONTROL_SOCKET, SUPERVISOR_SOCKET = "control.sock", "supervisor.sock"
_CONFIG_FILE = "runtime-config.json"
_FOLLOW_S = 0.5
_PROBE_TIMEOUT_S = 1.0
_OK = b" 200 "
Answer = Callable[[], Awaitable[bytes]]


READINESS_JSON = TypeAdapter(Readiness)
PROCESS_JSON = TypeAdapter(ProcessLoad)
SYSTEM_JSON = TypeAdapter(SystemLoad)
PERFORMANCE_JSON = TypeAdapter(Performance)


class ProcessUnavailableError(UnavailableError):
    """Another process of this system does not answer."""

    code = "process_unavailable"


def internal_app(answers: Mapping[str, Answer]) -> asgi.App:
    """Return an application that answers each path with the bytes of its function."""

    async def app(scope: asgi.Scope, _receive: asgi.Receive, send: asgi.Send) -> None:
        answer = answers.get(scope["path"])
        if answer is None:
            await asgi.respond(send, HTTPStatus.NOT_FOUND, b"")
        else:
            await asgi.respond(send, HTTPStatus.OK, await answer())

    return app


def supervised_app(health: Health, process: ProcessMonitor) -> asgi.App:
    """Return the application by which the supervisor probes and measures this process."""

    async def readiness() -> bytes:
        return READINESS_JSON.dump_json(await health.readiness())

    async def load() -> bytes:
        return PROCESS_JSON.dump_json(await process.report())

    return internal_app({ALIVE: alive, METRICS: own_metrics, READINESS: readiness, PROCESS: load})


async def alive() -> bytes:
    """Return the answer of a process that is alive."""
    return b"{}"


async def ask(path: Path, target: str, *, timeout_s: float | None) -> bytes:
    """Return the answer of the process at the Unix socket `path`.

    :raises ProcessUnavailableError: if it gives none in time.
    """
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpcore.AsyncConnectionPool(uds=str(path)) as pool,
        ):
            return (await pool.request("GET", f"http://internal{target}")).content
    except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
        raise ProcessUnavailableError(f"no process answers at {path}") from None


async def reload_workers(data: Path) -> bytes:
    """Replace the processes of the system on the data folder; return its report, as JSON.

    :raises ProcessUnavailableError: if it has no supervisor.
    """
    return await ask(data / FOLDER / SUPERVISOR_SOCKET, RELOAD, timeout_s=None)


def is_alive(path: Path) -> bool:
    """Return whether the process at the Unix socket `path` answers. Blocks for at most a second."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PROBE_TIMEOUT_S)
        try:
            connection.connect(str(path))
            connection.sendall(f"GET {ALIVE} HTTP/1.1\r\nhost: internal\r\n\r\n".encode())
            return _OK in connection.recv(64)
        except OSError:
            return False


class SupervisorClient:
    """The supervisor of this process, which gathers the answers of all processes."""

    def __init__(self, folder: Path, *, timeout_s: float) -> None:
        self._path = folder / SUPERVISOR_SOCKET
        self._timeout_s = timeout_s

    async def readiness(self) -> Readiness:
        """Return the readiness of the system.

        :raises ProcessUnavailableError: if the supervisor does not answer in time.
        """
        return READINESS_JSON.validate_json(await self._ask(READINESS))

    async def metrics(self) -> bytes:
        """Return the metrics of all processes.

        :raises ProcessUnavailableError: if the supervisor does not answer in time.
        """
        return await self._ask(METRICS)

    async def system(self) -> SystemLoad:
        """Return the load of the machine and of all processes.

        :raises ProcessUnavailableError: if the supervisor does not answer in time.
        """
        return SYSTEM_JSON.validate_json(await self._ask(SYSTEM))

    async def performance(self) -> Performance:
        """Return the latencies and rates of all processes.

        :raises ProcessUnavailableError: if the supervisor does not answer in time.
        """
        return PERFORMANCE_JSON.validate_json(await self._ask(PERFORMANCE))

    async def _ask(self, target: str) -> bytes:
        return await ask(self._path, target, timeout_s=self._timeout_s)


class SharedConfig:
    """The settings changed at runtime, which the control process writes and the workers follow."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _CONFIG_FILE
        self._values: dict[str, Any] = {}

    def clear(self) -> None:
        """Forget the values of an earlier run; the control process reads them from its topic."""
        self._path.unlink(missing_ok=True)

    def setter(self, key: str, apply: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return a function that applies a value here and shares it with the workers."""

        def set_value(value: Any) -> None:
            apply(value)
            self._values[key] = value
            write_atomically(self._path, json.dumps(self._values).encode(), durable=False)

        return set_value

    async def follow(self, apply: Mapping[str, Callable[[Any], None]]) -> None:
        """Apply the shared values, now and whenever one changes, until cancelled."""
        while True:
            for key, value in self._read().items():
                if self._values.get(key) != value:
                    self._values[key] = value
                    apply[key](value)
                    LOG.info("%s is now %r", key, value, extra={"action": "hot_config"})
            await asyncio.sleep(_FOLLOW_S)

    def _read(self) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        return values
