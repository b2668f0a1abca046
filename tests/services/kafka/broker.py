"""One broker that is its own controller (KRaft), on 127.0.0.1."""

import base64
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.services import require
from tests.services.kafka import jars
from tests.services.service import Service, ServiceError, free_port

SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={data}
num.partitions=4
auto.create.topics.enable=true
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
# After a kill the controller refuses the restarted broker until the old one's session ends.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# The defaults take 128 MB of heap and 20 MB of sparse index for each partition.
log.cleaner.dedupe.buffer.size=4194304
log.index.size.max.bytes=1048576
"""

# For a short run on few cores, less compilation and one collector thread start faster.
JVM_OPTIONS = [
    "-Xms64m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
]


class RealKafka(Service):
    """Run Apache Kafka; every record that it acknowledged outlives a kill."""

    def __init__(
        self, folder: Path, java: str, classpath: str, *, more: str = "", users: Sequence[str] = ()
    ) -> None:
        super().__init__("kafka", folder)
        self._more = more
        self._users = users
        self.port = free_port()
        self.brokers = f"127.0.0.1:{self.port}"
        self._java = [java, *JVM_OPTIONS, "-cp", classpath]
        self._settings = folder / "server.properties"
        self._format()

    def command(self) -> list[str]:
        """Give the command line of the broker."""
        return [*self._java, "kafka.Kafka", str(self._settings)]

    def is_ready(self) -> bool:
        """Tell whether the broker is registered and leads every partition that it holds."""
        client = AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})
        try:
            metadata = client.list_topics(timeout=0.5)
        except KafkaException:
            return False
        leaders = [
            partition.leader
            for topic in metadata.topics.values()
            for partition in topic.partitions.values()
        ]
        return bool(metadata.brokers) and all(leader == 1 for leader in leaders)

    def _format(self) -> None:
        self._settings.write_text(
            SETTINGS.format(port=self.port, controller_port=free_port(), data=self.folder / "data")
            + self._more.replace("{port}", str(self.port))
        )
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = [
            *self._java,
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster_id}",
            "--config",
            str(self._settings),
            *(f"--add-scram={user}" for user in self._users),
        ]
        with self.log.open("ab") as log:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, timeout=60
            )
        if ended.returncode:
            raise ServiceError(f"the storage tool failed; {self.describe_log()}")


def real_kafka(folder: Path, *, more: str = "", users: Sequence[str] = ()) -> RealKafka:
    """Describe a broker in `folder`, formatted and not yet started, or skip.

    `more` are further lines of its properties; `users` are SCRAM credentials as the storage tool
    takes them.
    """
    try:
        java, classpath = jars.java(), jars.classpath()
    except jars.JarsMissingError as missing:
        require(str(missing))
    return RealKafka(folder, java, classpath, more=more, users=users)
