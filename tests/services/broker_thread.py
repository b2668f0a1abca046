"""The embedded broker in a thread of the test, which can so put anything into its log."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mev.broker.__main__ import APIS
from mev.broker.scram import Verifier
from mev.broker.server import Broker
from mev.broker.topics import Topics
from mev.bus.kafka import Brokers

_USER = "mev"


@dataclass(frozen=True, slots=True)
class BrokerThread:
    """A running broker, the clients' address of it, and its event loop."""

    broker: Broker
    brokers: Brokers
    loop: asyncio.AbstractEventLoop

    def append(self, topic: str, partition: int, batch: memoryview) -> None:
        """Append a batch as if it had been published."""

        async def append() -> None:
            log = self.broker.topics.partitions(topic)[partition]
            log.append(batch)
            self.broker.arrived(log)

        asyncio.run_coroutine_threadsafe(append(), self.loop).result(10)


@contextmanager
def broker_thread(folder: Path) -> Iterator[BrokerThread]:
    """Run a broker on `folder`."""
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()[:2]
    topics = Topics(folder, partition_bytes=1 << 20)
    broker = Broker(
        topics,
        APIS,
        {_USER: Verifier(_USER, _USER)},
        host=host,
        port=port,
        connections=100,
        read_only={},
    )
    loops: list[asyncio.AbstractEventLoop] = []
    started, stopping = threading.Event(), asyncio.Event()

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with await asyncio.start_server(broker.serve, sock=listener):
            started.set()
            await stopping.wait()

    with closing(topics):
        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        assert started.wait(10)
        options: dict[str, str | int | float | bool] = {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": _USER,
            "sasl.password": _USER,
        }
        brokers = Brokers(servers=f"{host}:{port}", options=options)
        try:
            yield BrokerThread(broker, brokers, loops[0])
        finally:
            loops[0].call_soon_threadsafe(stopping.set)
            thread.join(10)
