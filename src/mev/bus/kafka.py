"""Common parts of Kafka clients: broker addresses, cluster requests, and errors."""

import logging
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._metadata import ClusterMetadata
from confluent_kafka.cimpl import NewPartitions, NewTopic

from mev.core.errors import UnavailableError

LOG = logging.getLogger(__name__)
Options = Mapping[str, str | int | float | bool]
Position = tuple[str, int]  # topic and partition
CLIENT_ID = "mev"
_REASONS = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})  # noqa: SLF001 - its constants
PARTITIONS = 4
LONG_POLL_MS = 2000
"""Maximum wait of a follower's fetch; it returns at once when there are messages."""
POLL_S = 0.4
"""Maximum wait in the client before a thread checks whether to stop.

The client wakes up every 0.2 s anyway.
"""


class QueueFullError(UnavailableError):
    """The producer's queue is full."""

    code = "publish_queue_full"


class PublishError(UnavailableError):
    """The brokers did not acknowledge a message."""

    code = "publish_failed"


class BrokerUnavailableError(UnavailableError):
    """No broker answers."""

    code = "kafka_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Brokers:
    """Address of a Kafka cluster: bootstrap servers and librdkafka properties.

    `embedded` marks our own broker.
    """

    servers: str
    options: Options = field(default_factory=dict)
    embedded: bool = False

    def config(self, **properties: str | int | float | bool) -> dict[str, Any]:
        """Return a client configuration; in `properties`, underscores stand for dots.

        Clients log to our logger.
        """
        consumer: dict[str, int] = {}
        if "group_id" in properties:
            # Pause after a full queue; librdkafka's default of 1 s would starve a fast reader.
            consumer["fetch.queue.backoff.ms"] = 10
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic as declared; what is None or not in `config` is the cluster's default."""

    name: str
    partitions: int | None = None
    replication: int | None = None
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicState:
    """A topic as the cluster has it; `replication` is the least of its partitions."""

    partitions: int
    replication: int
    config: Mapping[str, str]


class KafkaCluster:
    """Requests to a cluster; all methods block, at most `timeout_s`."""

    def __init__(self, brokers: Brokers, *, timeout_s: float) -> None:
        self._brokers = brokers
        self._timeout_s = timeout_s
        self._problem = ""
        config: dict[str, Any] = {**brokers.config(), "error_cb": self._note}
        self._admin = AdminClient(config)

    def _note(self, error: KafkaError) -> None:
        if error.code() in _REASONS:
            self._problem = error.str()

    def ping(self) -> int:
        """Return the number of brokers that the cluster reports.

        :raises BrokerUnavailableError: when none answers in time.
        """
        return len(self._metadata().brokers)

    def id(self) -> str:
        """Return the cluster id; offsets are valid only for this cluster."""
        return str(self._metadata().cluster_id)

    def ensure_topics(self, topics: Iterable[str]) -> None:
        """Create missing `topics`; the cluster's defaults apply (embedded: 4 partitions)."""
        self.create_topics(TopicSpec(name=topic) for topic in topics)

    def create_topics(self, specs: Iterable[TopicSpec]) -> None:
        """Create those topics of `specs` that are missing.

        :raises BrokerUnavailableError: naming the topic that cannot be created.
        """
        wanted = [
            NewTopic(
                spec.name,
                num_partitions=spec.partitions or -1,
                replication_factor=spec.replication or -1,
                config=dict(spec.config),
            )
            for spec in specs
        ]
        if not wanted:
            return
        futures = self._admin.create_topics(wanted, request_timeout=self._timeout_s)
        for topic, future in futures.items():
            self._finish(
                future, f"topic {topic} cannot be created", KafkaError.TOPIC_ALREADY_EXISTS
            )

    def add_partitions(self, topic: str, total: int) -> None:
        """Add partitions to `topic`, up to `total`.

        :raises BrokerUnavailableError: if the cluster refuses it.
        """
        futures = self._admin.create_partitions(
            [NewPartitions(topic, total)], request_timeout=self._timeout_s
        )
        self._finish(futures[topic], f"partitions cannot be added to {topic}")

    def set_config(self, topic: str, name: str, value: str) -> None:
        """Set one property of the configuration of `topic`.

        :raises BrokerUnavailableError: if the cluster refuses it.
        """
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
        futures = self._admin.incremental_alter_configs([resource], request_timeout=self._timeout_s)
        self._finish(futures[resource], f"{name} of {topic} cannot be set")

    def describe_topics(
        self, topics: Collection[str], config: Collection[str]
    ) -> dict[str, TopicState]:
        """Return those of `topics` that exist, with the properties named in `config`.

        :raises BrokerUnavailableError: if the cluster does not answer.
        """
        known = self._metadata().topics
        there = [topic for topic in topics if topic in known]
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in there]
        futures = (
            self._admin.describe_configs(resources, request_timeout=self._timeout_s)
            if resources
            else {}
        )
        found = {}
        for resource, future in futures.items():
            name = resource.name
            entries = self._finish(future, f"{name} cannot be described")
            partitions = known[name].partitions
            found[name] = TopicState(
                partitions=len(partitions),
                replication=min(len(each.replicas) for each in partitions.values()),
                config={key: entries[key].value for key in config if key in entries},
            )
        return found

    def _finish(self, future: "Future[Any]", what: str, *accepted: int) -> Any:
        try:
            return future.result(timeout=self._timeout_s)
        except KafkaException as error:
            if error.args[0].code() in accepted:
                return None
            raise BrokerUnavailableError(f"{what}: {error.args[0].str()}") from None

    def _metadata(self) -> ClusterMetadata:
        try:
            return self._admin.list_topics(timeout=self._timeout_s)
        except KafkaException as error:
            self._admin.poll(0)  # calls `_note`
            reason = self._problem or error.args[0].str()
            settings = "KAFKA_TLS_... and KAFKA_SASL_..." if self._problem else "KAFKA_BROKERS"
            raise BrokerUnavailableError(
                f"no Kafka broker answered at {self._brokers.servers} within {self._timeout_s:g} s "
                f"({reason}); check {settings}",
                retry_after_s=5,
            ) from None
