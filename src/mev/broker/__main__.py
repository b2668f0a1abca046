"""Command line of the broker, which the control plane starts and supervises.

``python -m mev.broker --listener FD --password-file USER FILE ... FOLDER``
"""

import argparse
import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path

import uvloop

from mev.broker import group_requests, record_requests, topic_requests
from mev.broker.scram import Verifier
from mev.broker.server import READ_BUFFER_BYTES, Api, Broker
from mev.broker.topics import Topics

CONNECTIONS = 1000
# By API key. Versions before the flexible encodings, at least those of Kafka 4 clients (KIP-896).
APIS = {
    0: Api(3, 7, record_requests.produce),
    1: Api(4, 6, record_requests.fetch),
    2: Api(1, 2, record_requests.list_offsets),
    3: Api(1, 5, topic_requests.metadata),
    8: Api(2, 3, group_requests.offset_commit),
    9: Api(1, 3, group_requests.offset_fetch),
    10: Api(0, 2, group_requests.find_coordinator),
    11: Api(1, 3, group_requests.join_group),
    12: Api(0, 2, group_requests.heartbeat),
    13: Api(0, 2, group_requests.leave_group),
    14: Api(0, 2, group_requests.sync_group),
    19: Api(2, 4, topic_requests.create_topics),
    22: Api(0, 1, record_requests.init_producer_id),
}


def main() -> None:
    """Serve until SIGTERM, then flush all records to disk.

    A killed broker loses no records; a power failure may lose the newest ones.
    """
    parser = argparse.ArgumentParser(prog="mev.broker", description="The embedded Kafka broker.")
    parser.add_argument(
        "--listener", type=int, required=True, help="a listening socket's descriptor"
    )
    parser.add_argument(
        "--password-file", nargs=2, action="append", metavar=("USER", "FILE"), required=True
    )
    parser.add_argument(
        "--read-only", nargs=2, action="append", metavar=("USER", "TOPIC"), default=[]
    )
    parser.add_argument("--partition-bytes", type=int, required=True)
    parser.add_argument("--protected-group", default="")
    parser.add_argument("--protected-topic", action="append", default=[])
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    listener = socket.socket(fileno=given.listener)
    host, port = listener.getsockname()[:2]
    topics = Topics(
        given.folder,
        partition_bytes=given.partition_bytes,
        protected_group=given.protected_group,
        protected_topics=given.protected_topic,
    )
    verifiers = {
        user: Verifier(user, Path(file).read_text().strip()) for user, file in given.password_file
    }
    read_only = {
        user: frozenset(topic for of, topic in given.read_only if of == user) for user in verifiers
    }
    broker = Broker(
        topics, APIS, verifiers, host=host, port=port, connections=CONNECTIONS, read_only=read_only
    )
    uvloop.run(_run(broker, listener))
    topics.close()


async def _run(broker: Broker, listener: socket.socket) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await asyncio.start_server(broker.serve, sock=listener, limit=READ_BUFFER_BYTES)
    await stopping.wait()


if __name__ == "__main__":
    main()
