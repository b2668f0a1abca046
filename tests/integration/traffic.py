"""Traffic through a running system: posted events, and everything a subscriber receives."""

import itertools
import json
import threading
import time
import uuid
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.services.system import RunningSystem

_BATCH = 10
_PAUSE_S = 0.04
_REQUEST_S = 40.0


class Poster:
    """Poster of ticks from `threads` threads; a refused batch is posted again until accepted."""

    def __init__(self, system: RunningSystem, threads: int = 2) -> None:
        self.run = uuid.uuid4().hex
        self.acknowledged: set[int] = set()
        self.refused: list[httpx.Response] = []
        self.errors: list[BaseException] = []
        self._system = system
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"poster-{index}", daemon=True)
            for index in range(threads)
        ]

    def stop(self) -> None:
        """Stop once every batch that was begun has been taken."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), self.refused[-1:]
        assert not self.errors, self.errors

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()

    def _work(self) -> None:
        try:
            with self._system.client() as client:
                while not self._stopping.wait(_PAUSE_S):
                    self._post(client, list(itertools.islice(self._numbers, _BATCH)))
        except (httpx.HTTPError, OSError) as error:
            self.errors.append(error)

    def _post(self, client: httpx.Client, numbers: list[int]) -> None:
        events = [
            {"market_id": f"{self.run}-{number % 8}", "timestamp_ns": number, "simulated": True}
            for number in numbers
        ]
        deadline = time.monotonic() + _REQUEST_S
        while time.monotonic() < deadline:
            answer = client.post("/api/events/tick", json=events)
            if answer.status_code == httpx.codes.ACCEPTED and answer.json()["accepted"] == len(
                events
            ):
                self.acknowledged.update(numbers)
                return
            self.refused.append(answer)
            time.sleep(_PAUSE_S)


class Subscriber:
    """Receives ticks on one connection; `received` are the times of those of `run`."""

    def __init__(self, system: RunningSystem, run: str) -> None:
        self.received: set[int] = set()
        self.dropped = 0
        self.is_open = True
        self._run = run
        self._url = system.url.replace("http", "ws", 1) + "/api/realtime/ws"
        self._headers = {"X-API-Key": system.key}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._socket = self._stack.enter_context(
            connect(self._url, additional_headers=self._headers)
        )
        self._socket.send(json.dumps({"op": "subscribe", "id": "s", "topics": ["tick"]}))
        assert json.loads(self._socket.recv(30))["op"] == "subscribed"
        self._thread = threading.Thread(target=self._read, name="subscriber", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._thread.join(30)

    def _read(self) -> None:
        try:
            while True:
                self._take(json.loads(self._socket.recv()))
        except ConnectionClosed:
            self.is_open = False

    def _take(self, message: dict[str, Any]) -> None:
        self.dropped += message.get("dropped", 0)
        self.received.update(
            event["timestamp_ns"]
            for event in message.get("events", ())
            if event["market_id"].startswith(self._run)
        )
