"""Agents whose answers a test decides: enrolled over HTTP, reporting over the real topic."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx

from mev import settings
from mev.bus.boot import open_publisher
from mev.bus.embedded import embedded_brokers
from mev.bus.publisher import Publisher
from mev.core.clock import now_ns
from mev.crypto import possession
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.wire.pb.control_pb2 import Report, Running
from mev.wire.topics import REPORT
from tests.services.system import RunningSystem
from tests.services.waits import until_document


class ReportingAgents:
    """Enrols agents over `http` and publishes the reports that a test wants."""

    def __init__(self, http: httpx.Client, publisher: Publisher) -> None:
        self._http = http
        self._publisher = publisher
        self._keys: dict[str, tuple[SigningKey, str]] = {}
        self._counter = 0

    def enrol(self, agent_id: str, module: str, **declaration: Any) -> httpx.Response:
        """Enrol an agent that declares `declaration`; return the answer."""
        key, _ = self._keys.setdefault(agent_id, (SigningKey.generate(), module))
        return enrol(self._http, key, {"agent_id": agent_id, "module": module, **declaration})

    def report(self, agent_id: str, *, running: Running | None = None) -> None:
        """Send a sign of life."""
        self._send(agent_id, Report(result="STATUS", running=running))

    def answer(self, agent_id: str, command_id: str, reason_code: str = "") -> None:
        """Acknowledge or refuse a command; return when the control plane has read the answer."""
        result = "NACK" if reason_code else "ACK"
        self._send(agent_id, Report(command_id=command_id, result=result, reason_code=reason_code))

        def is_known(command: dict[str, Any]) -> bool:
            states = {one["agent_id"]: one["state"] for one in command["deliveries"]}
            return states.get(agent_id) in {"SYNCED", "ERROR"}

        until_document(self._http, f"/api/control/commands/{command_id}", is_known)

    def _send(self, agent_id: str, report: Report) -> None:
        key, module = self._keys[agent_id]
        self._counter += 1
        report.agent_id, report.module, report.agent_counter = agent_id, module, self._counter
        report.reported_at_ns = now_ns()
        self._publisher.publish_and_wait(
            REPORT, [{"key": agent_id.encode(), "value": seal(report, key).SerializeToString()}]
        )


def enrol(http: httpx.Client, key: SigningKey, body: dict[str, Any]) -> httpx.Response:
    """Enrol an agent with `key`; return the answer."""
    content, headers = signed_enrolment(key, body)
    return http.post("/api/control/agents", content=content, headers=headers)


def signed_enrolment(key: SigningKey, body: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return the content and headers that enrol an agent with `key`."""
    content = json.dumps({"public_key": key.public_key.hex(), **body}).encode()
    return content, {
        "Content-Type": "application/json",
        possession.HEADER: possession.prove(key, content),
    }


@contextmanager
def reporting_agents(system: RunningSystem, http: httpx.Client) -> Iterator[ReportingAgents]:
    """Give agents of a running system."""
    runtime = json.loads((system.data_dir / "runtime.json").read_text())
    brokers = embedded_brokers(system.data_dir / "kafka", runtime["kafka"])
    with closing(open_publisher(settings.load(), brokers)) as publisher:
        yield ReportingAgents(http, publisher)
