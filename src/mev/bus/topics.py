"""The topics as this program declares them: what is missing or different on a cluster, and changes.

A property that is not declared is left as the cluster has it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from mev.bus.kafka import KafkaCluster, TopicSpec, TopicState
from mev.settings import Settings
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import AUDIT, CONTROL, DEAD_LETTER, REPORT

RETENTION, CLEANUP, IN_SYNC = "retention.ms", "cleanup.policy", "min.insync.replicas"
SHOWN_CONFIG = (RETENTION, CLEANUP, IN_SYNC)


class TopicAction(StrEnum):
    """Change that removes a difference."""

    CREATE = "create"
    GROW = "grow"
    """Adds partitions: later events of a key may go to another partition than earlier ones."""
    SET = "set"
    BY_HAND = "by hand"
    """Replicas are moved with Kafka's own tool; partitions cannot be removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A property of a topic that is not as declared."""

    topic: str
    name: str
    found: str
    wanted: str
    action: TopicAction


def declared_topics(settings: Settings) -> list[TopicSpec]:
    """Return all topics of this program with the properties that the settings declare.

    The retention is that of events: audit records, reports and dead letters are kept as long as the
    cluster keeps them.
    """
    is_own = "kafka" not in settings.embedded  # the embedded broker has one replica
    config, events = dict[str, str](), dict[str, str]()
    if is_own and settings.kafka_topic_min_insync_replicas is not None:
        config[IN_SYNC] = events[IN_SYNC] = str(settings.kafka_topic_min_insync_replicas)
    if is_own and settings.kafka_topic_retention_s is not None:
        events[RETENTION] = str(round(settings.kafka_topic_retention_s * 1000))
    partitions = settings.kafka_topic_partitions if is_own else None
    replication = settings.kafka_topic_replication if is_own else None

    def spec(name: str, declared: Mapping[str, str]) -> TopicSpec:
        return TopicSpec(name=name, partitions=partitions, replication=replication, config=declared)

    return [
        *(spec(name, events) for name in BY_TOPIC),
        *(spec(name, config) for name in (DEAD_LETTER, REPORT, AUDIT)),
        # One partition keeps commands in order; compaction keeps the active ones forever.
        TopicSpec(
            name=CONTROL,
            partitions=1,
            replication=replication,
            config={**config, CLEANUP: "compact"},
        ),
    ]


def differences(specs: Iterable[TopicSpec], found: Mapping[str, TopicState]) -> list[Difference]:
    """Return what is missing or different in `found`, in the order of `specs`."""
    return [each for spec in specs for each in _of_topic(spec, found.get(spec.name))]


def apply(
    cluster: KafkaCluster,
    specs: Iterable[TopicSpec],
    wanted: Iterable[Difference],
    *,
    grow: bool,
) -> list[Difference]:
    """Change the cluster as declared, partitions only with `grow`; return what was changed.

    :raises BrokerUnavailableError: if the cluster refuses a change, naming it.
    """
    by_name = {spec.name: spec for spec in specs}
    allowed = {TopicAction.CREATE, TopicAction.SET} | ({TopicAction.GROW} if grow else set())
    changed = [each for each in wanted if each.action in allowed]
    cluster.create_topics(
        by_name[each.topic] for each in changed if each.action is TopicAction.CREATE
    )
    for each in changed:
        if each.action is TopicAction.GROW:
            cluster.add_partitions(each.topic, int(each.wanted))
        elif each.action is TopicAction.SET:
            cluster.set_config(each.topic, each.name, each.wanted)
    return changed


def _of_topic(spec: TopicSpec, state: TopicState | None) -> list[Difference]:
    if state is None:
        return [
            Difference(
                topic=spec.name, name="topic", found="missing", wanted="", action=TopicAction.CREATE
            )
        ]
    found = []
    if spec.partitions is not None and spec.partitions != state.partitions:
        action = TopicAction.GROW if spec.partitions > state.partitions else TopicAction.BY_HAND
        found.append(_difference(spec, "partitions", state.partitions, spec.partitions, action))
    if spec.replication is not None and spec.replication != state.replication:
        found.append(
            _difference(
                spec, "replication", state.replication, spec.replication, TopicAction.BY_HAND
            )
        )
    return found + [
        _difference(spec, name, state.config.get(name, ""), value, TopicAction.SET)
        for name, value in spec.config.items()
        if state.config.get(name) != value
    ]


def _difference(
    spec: TopicSpec, name: str, found: object, wanted: object, action: TopicAction
) -> Difference:
    return Difference(
        topic=spec.name, name=name, found=str(found), wanted=str(wanted), action=action
    )
