"""What every Kafka client here shares: where the brokers are, and asking them."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.cimpl import NewTopic

from mev.bus.errors import BrokerUnavailableError

LOG = logging.getLogger(__name__)
Options = Mapping[str, str | int | float | bool]
Position = tuple[str, int]  # topic and partition
CLIENT_ID = "mev"
PARTITIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Brokers:
    """Address of a Kafka cluster: bootstrap servers and more librdkafka properties. `embedded` marks our own in-process broker."""

    servers: str
    options: Options = field(default_factory=dict)
    embedded: bool = False

    def config(self, **properties: str | int | float | bool) -> dict[str, Any]:
        """Return a client's configuration; `properties` are named with underscores for dots. What clients log goes to our log."""
        consumer: dict[str, int] = {}
        if "group_id" in properties:
            consumer["fetch.queue.backoff.ms"] = 10  # of a full queue; the client's own second would starve a fast reader
            if self.embedded:
                consumer["fetch.wait.max.ms"] = 5  # the embedded broker does not wake a waiting fetch when data arrives
        named = {name.replace("_", "."): value for name, value in properties.items()}
        return {
            "bootstrap.servers": self.servers,
            "client.id": CLIENT_ID,
            "log_level": 3,
            "logger": LOG,
            **consumer,
            **named,
            **self.options,
        }


class Cluster:
    """Questions to a cluster as a whole. All methods block, at most `timeout_s`."""

    def __init__(self, brokers: Brokers, *, timeout_s: float) -> None:
        self._brokers = brokers
        self._timeout_s = timeout_s
        self._admin = AdminClient(brokers.config())

    def ping(self) -> int:
        """Return the number of brokers that the cluster reports.

        :raises BrokerUnavailableError: when none answers in time.
        """
        return len(self._metadata().brokers)

    def id(self) -> str:
        """Return the cluster's own name. An embedded broker's is new at every start, as its offsets begin again at 0."""
        if self._brokers.embedded:
            return f"embedded-{time.time_ns()}"
        return str(self._metadata().cluster_id)

    def ensure_topics(self, topics: Iterable[str], *, partitions: int = -1, config: Mapping[str, str] | None = None) -> None:
        """Create the `topics` that do not exist, with the cluster's defaults where nothing is said (embedded: always 4 partitions)."""
        if self._brokers.embedded:
            for topic in topics:  # asking the embedded broker for a topic makes it
                self._metadata(topic)
            return
        wanted = [NewTopic(topic, num_partitions=partitions, replication_factor=-1, config=dict(config or {})) for topic in topics]
        for topic, future in self._admin.create_topics(wanted, request_timeout=self._timeout_s).items():
            try:
                future.result(timeout=self._timeout_s)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BrokerUnavailableError(f"topic {topic} cannot be created: {error.args[0].str()}") from None

    def _metadata(self, topic: str | None = None) -> ClusterMetadata:
        try:
            return self._admin.list_topics(topic, timeout=self._timeout_s) if topic else self._admin.list_topics(timeout=self._timeout_s)
        except KafkaException as error:
            raise BrokerUnavailableError(
                f"no Kafka broker answered at {self._brokers.servers} within {self._timeout_s:g} s "
                f"({error.args[0].str()}); check KAFKA_BROKERS",
                retry_after_s=5,
            ) from None
