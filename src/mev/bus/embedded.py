"""The embedded broker: a supervised child process (:mod:`mev.broker`) with the Kafka protocol.

Its log is on disk. This process owns the listening socket: while the child restarts, connections
wait at the same address. Clients need a password from its folder, which only the operating-system
user of this process can read. The control plane's password permits everything; the agents' password
does not permit to write the topics that agents act on, to create topics, or to commit for the sink.
"""

import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from mev.bus.kafka import Brokers, BrokerUnavailableError
from mev.core.files import secret
from mev.core.supervisor import Child, ChildFailedError, RestartPolicy, Supervisor
from mev.wire.registry import EVENT_TYPES
from mev.wire.topics import AUDIT, CONTROL

KAFKA_FOLDER = "kafka"
"""The broker's folder in the data folder."""
CONTROL_PLANE_USER = "mev"
AGENT_USER = "agent"
AGENT_READ_ONLY = (CONTROL, AUDIT, *(EVENT_TYPES[name].topic for name in ("opportunity", "job")))
"""What agents act on, and what the control plane alone says: their user may not write it."""
PARTITION_BYTES = 64 << 20
_PORT_FILE = "port"
_HOST = "127.0.0.1"
_PROBE_S = 2.0
# An ApiVersions request of version 0: length, key 18, version, correlation id, no client id.
_PROBE = bytes.fromhex("0000000a 0012 0000 00000000 ffff")
Protected = tuple[str, Iterable[str]]


class EmbeddedBroker:
    """A running broker with its log in `folder`: the newest `partition_bytes` per partition.

    `protected` names a consumer group and topics: messages that the group has not committed are not
    removed, and publishers wait for it. The broker stops on :meth:`close` or when this process
    ends.
    """

    def __init__(
        self,
        folder: Path,
        *,
        timeout_s: float,
        partition_bytes: int = PARTITION_BYTES,
        protected: Protected = ("", ()),
        policy: RestartPolicy | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = folder.resolve()
        self._listener = _listen(folder / _PORT_FILE)
        self.brokers = embedded_brokers(folder, f"{_HOST}:{self._listener.getsockname()[1]}")
        group, topics = protected
        descriptor = self._listener.fileno()
        command = [sys.executable, "-P", "-m", "mev.broker", "--listener", str(descriptor)]
        for user in (CONTROL_PLANE_USER, AGENT_USER):
            secret(_password_file(folder, user))
            command += ["--password-file", user, str(_password_file(folder, user))]
        command += [
            word for topic in AGENT_READ_ONLY for word in ("--read-only", AGENT_USER, topic)
        ]
        command += ["--partition-bytes", str(partition_bytes)]
        command += [
            "--protected-group",
            group,
            *(word for topic in topics for word in ("--protected-topic", topic)),
            str(folder),
        ]
        child = Child(
            name="kafka",
            command=command,
            folder=folder,
            log=folder / "broker.log",
            is_well=self._answers,
            descriptors=(descriptor,),
        )
        self.supervisor = Supervisor(child, policy or RestartPolicy(start_s=timeout_s))
        try:
            self.supervisor.start()
        except ChildFailedError as error:
            self._listener.close()
            raise BrokerUnavailableError(
                f"the embedded broker did not start: {error} (log: {folder / 'broker.log'})"
            ) from None

    def close(self) -> None:
        """Stop the broker."""
        self.supervisor.stop()
        self._listener.close()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(
                self._listener.getsockname(), timeout=_PROBE_S
            ) as connection:
                connection.sendall(_PROBE)
                return bool(connection.recv(4))
        except OSError:
            return False


def embedded_brokers(folder: Path, servers: str, *, user: str = CONTROL_PLANE_USER) -> Brokers:
    """Return the address `servers` of the broker in `folder`, with the password of `user`."""
    options: dict[str, str | int | float | bool] = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": user,
        "sasl.password": secret(_password_file(folder, user)),
    }
    return Brokers(servers=servers, options=options, embedded=True)


def _password_file(folder: Path, user: str) -> Path:
    return folder / f"{user}-password"


def _listen(port_file: Path) -> socket.socket:
    """Listen on the previous port, if possible."""
    before = port_file.read_text().strip() if port_file.exists() else ""
    ports = [int(before), 0] if before.isdecimal() and int(before) < 1 << 16 else [0]
    for port in ports:
        try:
            listener = socket.create_server((_HOST, port), backlog=512)
        except OSError:
            if not port:
                raise
        else:
            port_file.write_text(str(listener.getsockname()[1]))
            return listener
    raise AssertionError("unreachable")
