"""A small control plane on loopback: HTTP for enrolment and models, and an embedded broker."""

import asyncio
import json
import socket
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress

from confluent_kafka import Producer
from google.protobuf.message import Message

from mev.agent import Site
from mev.bus.batch import PartitionBatch
from mev.bus.follow import Followed
from mev.bus.kafka import Brokers, KafkaCluster
from mev.bus.tail import Tail
from mev.core.errors import UnavailableError
from mev.crypto.keys import default_key_id
from mev.crypto.trust import AGENT, TrustStore
from mev.wire.pb.control_pb2 import Command, Report
from mev.wire.pb.envelope_pb2 import KeySet, TrustedKey
from mev.wire.pb.events_pb2 import Bundle, Opportunity, Score
from mev.wire.registry import EVENT_TYPES
from mev.wire.topics import CONTROL, REPORT
from tests.services.embedded import TemporaryBroker
from tests.services.waits import until_async
from tests.unit.agent.plane import Clock, Plane

TIMEOUT_S = 10.0
BUNDLES = EVENT_TYPES["bundle"].topic
SCORES = EVENT_TYPES["score"].topic


class FakeSite:
    """Control plane as agents see it. Made in the event loop; `key` is the required API key."""

    def __init__(self, clock: Clock) -> None:
        self.plane = Plane(clock)
        self.key = "secret"
        self.in_force: list[Command] = []
        self.enrolled: dict[str, dict[str, object]] = {}
        self.reports: list[Report] = []
        self.bundles: list[Bundle] = []
        self.scores: list[Score] = []
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.forged: bytes | None = None
        self._loop = asyncio.get_running_loop()
        self._offset = 0
        self._server: asyncio.Server | None = None
        self._muted: socket.socket | None = None

    async def start(self) -> None:
        """Begin, on a new broker and a new port."""
        self._broker = await asyncio.to_thread(TemporaryBroker, timeout_s=TIMEOUT_S)
        self._offset = 0
        topics = [CONTROL, REPORT, BUNDLES, SCORES, EVENT_TYPES["opportunity"].topic]
        await asyncio.to_thread(
            KafkaCluster(self._broker.brokers, timeout_s=TIMEOUT_S).ensure_topics, topics
        )
        self._producer = Producer(self._broker.brokers.config(linger_ms=0))
        self._tail = Tail(
            self._broker.brokers, [REPORT, BUNDLES, SCORES], self._deliver, timeout_s=TIMEOUT_S
        )
        await asyncio.to_thread(self._tail.start)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Go away, as a control plane that ends does."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if self._muted is None:
                await self._end_broker()
            else:
                self._muted.close()
                self._muted = None

    async def mute(self) -> None:
        """Replace the brokers by a server that never answers; the API stays."""
        self._muted = socket.create_server(("127.0.0.1", 0), backlog=100)
        await self._end_broker()

    def locate(self) -> Site:
        """Return where it is now."""
        if self._server is None:
            raise UnavailableError("nothing runs here")
        port = self._server.sockets[0].getsockname()[1]
        return Site(api=f"http://127.0.0.1:{port}", api_key=self.key, brokers=self.brokers)

    @property
    def brokers(self) -> Brokers:
        """Its brokers."""
        if self._muted is not None:
            return Brokers(servers="{}:{}".format(*self._muted.getsockname()))
        return self._broker.brokers

    async def order(self, command: Command) -> str:
        """Publish a command that stays in force; return its id."""
        self.in_force.append(command)
        await self.send(command)
        return command.id

    async def send(self, message: Message) -> None:
        """Sign and publish."""
        await self.send_bytes(self.plane.sealed(message))

    async def send_bytes(self, envelope: bytes) -> None:
        """Publish an envelope as it is."""
        self._producer.produce(CONTROL, envelope, partition=0)
        await asyncio.to_thread(self._producer.flush, TIMEOUT_S)
        self._offset += 1

    async def see(self, opportunities: Sequence[Opportunity]) -> None:
        """Publish opportunities."""
        event = EVENT_TYPES["opportunity"]
        for one in opportunities:
            self._producer.produce(event.topic, one.SerializeToString())
        await asyncio.to_thread(self._producer.flush, TIMEOUT_S)

    async def until(self, found: Callable[[Report], bool]) -> Report:
        """Wait for a report that came at any time."""
        await until_async(lambda: len(self.reports), lambda _: any(map(found, self.reports)))
        return next(filter(found, self.reports))

    async def answer(self, command_id: str) -> Report:
        """Wait for the answer to a command."""
        return await self.until(lambda report: report.command_id == command_id)

    async def _end_broker(self) -> None:
        await asyncio.to_thread(self._tail.close)
        await asyncio.to_thread(self._producer.flush, TIMEOUT_S)
        await asyncio.to_thread(self._broker.close)

    def _deliver(self, batches: list[PartitionBatch]) -> None:
        for batch in batches:
            for value in batch.values:
                self._loop.call_soon_threadsafe(self._received, batch.topic, value)

    def _received(self, topic: str, value: bytes) -> None:
        if topic == BUNDLES:
            self.bundles.append(Bundle.FromString(value))
            return
        if topic == SCORES:
            self.scores.append(Score.FromString(value))
            return
        known = [bytes.fromhex(str(one["public_key"])) for one in self.enrolled.values()]
        keys = [
            TrustedKey(key_id=default_key_id(key), public_key=key, roles=[AGENT]) for key in known
        ]
        self.reports.append(
            TrustStore(KeySet(epoch=1, keys=keys)).open(value, Report, AGENT, self.plane.clock())
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(
                (
                    int(line.split(":")[1])
                    for line in head.split("\r\n")
                    if line.startswith("content-length:")
                ),
                0,
            )
            body = await reader.readexactly(length)
            status, answer = self._answer(head, body)
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            writer.write(
                b"HTTP/1.1 %d x\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (status, len(content), content)
            )
            await writer.drain()
        writer.close()

    def _answer(self, head: str, body: bytes) -> tuple[int, dict[str, object] | bytes]:
        request = head.split(" http/", maxsplit=1)[0]
        self.requests.append(request)
        if f"x-api-key: {self.key}\r\n" not in head:
            return 401, {"detail": "wrong key"}
        if request.startswith("get /api/training/models/"):
            content = self.files.get(request.rpartition("/")[2])
            return (200, content) if content is not None else (404, {"detail": "no such file"})
        if request == "post /api/control/agents":
            wanted = json.loads(body)
            known = self.enrolled.setdefault(wanted["agent_id"], wanted)
            if known["public_key"] != wanted["public_key"]:
                return 409, {"detail": "an agent of this name has another key"}
        snapshot = self.plane.sealed(self.plane.snapshot(*self.in_force))
        return 200, {
            "agent_id": "",
            "key_set": b64encode(self.plane.key_set).decode(),
            "snapshot": b64encode(self.forged or snapshot).decode(),
            "control_offset": self._offset,
            "lease_ttl_s": 10.0,
            "report_interval_s": 0.1,
        }


class Read:
    """Messages delivered to a follower, for a test that waits in its own thread."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.lost: list[int] = []
        self.down: list[str] = []

    def deliver(self, followed: Followed) -> None:
        """Take what was read."""
        self.values += followed.values
        self.lost.append(followed.lost)
