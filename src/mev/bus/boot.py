"""Start of Kafka: the brokers of the settings or the embedded one, topics, and publishers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mev.bus.embedded import KAFKA_FOLDER, EmbeddedBroker
from mev.bus.kafka import Brokers, KafkaCluster
from mev.bus.publisher import Publisher
from mev.bus.topics import declared_topics
from mev.core.supervisor import RestartPolicy, Supervisor
from mev.settings import Settings, parse_kafka_options
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import SINK_GROUP


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaService:
    """A running Kafka cluster with all topics: addresses, requests, id and supervisor."""

    brokers: Brokers
    cluster: KafkaCluster
    cluster_id: str
    supervisor: Supervisor | None
    """None if the service is not embedded."""


@asynccontextmanager
async def running_kafka(
    settings: Settings, folder: Path, restart_policy: RestartPolicy
) -> AsyncIterator[KafkaService]:
    """Run the embedded broker on the data folder `folder` unless KAFKA_BROKERS is set.

    Missing topics are created.

    :raises BrokerUnavailableError: if no broker answers.
    """
    async with AsyncExitStack() as stack:
        supervisor = None
        if (brokers := external_brokers(settings)) is None:
            open_broker = partial(
                EmbeddedBroker,
                folder / KAFKA_FOLDER,
                timeout_s=settings.service_timeout_s,
                partition_bytes=settings.kafka_embedded_partition_bytes,
                protected=(SINK_GROUP, BY_TOPIC),
                policy=restart_policy,
            )
            broker = await asyncio.to_thread(open_broker)
            stack.push_async_callback(asyncio.to_thread, broker.close)
            brokers, supervisor = broker.brokers, broker.supervisor
        cluster = KafkaCluster(brokers, timeout_s=settings.service_timeout_s)
        await asyncio.to_thread(_create_topics, cluster, settings)
        yield KafkaService(
            brokers=brokers,
            cluster=cluster,
            cluster_id=await asyncio.to_thread(cluster.id),
            supervisor=supervisor,
        )


def external_brokers(settings: Settings) -> Brokers | None:
    """Return the brokers of KAFKA_BROKERS, None if the embedded broker is used."""
    if not settings.kafka_brokers:
        return None
    return Brokers(
        servers=settings.kafka_brokers,
        options={**_security(settings), **parse_kafka_options(settings.kafka_options)},
    )


def _security(settings: Settings) -> dict[str, str]:
    """Return the librdkafka properties of the settings for TLS and SASL."""
    mechanism, password = settings.kafka_sasl_mechanism, settings.kafka_sasl_password
    protocol = ("SASL_" if mechanism else "") + ("SSL" if settings.kafka_has_tls else "PLAINTEXT")
    is_oauth = mechanism == "OAUTHBEARER"
    user_name, secret_name = (
        ("sasl.oauthbearer.client.id", "sasl.oauthbearer.client.secret")
        if is_oauth
        else ("sasl.username", "sasl.password")
    )
    properties = {
        "security.protocol": protocol if protocol != "PLAINTEXT" else None,
        "ssl.ca.location": settings.kafka_tls_ca_file,
        "ssl.certificate.location": settings.kafka_tls_cert_file,
        "ssl.key.location": settings.kafka_tls_key_file,
        "ssl.key.password": settings.kafka_tls_key_password.get_secret_value(),
        "sasl.mechanism": mechanism,
        "sasl.oauthbearer.method": "oidc" if is_oauth else None,
        "sasl.oauthbearer.token.endpoint.url": settings.kafka_oauth_token_url,
        user_name: settings.kafka_sasl_username,
        secret_name: password.get_secret_value(),
    }
    return {name: str(value) for name, value in properties.items() if value}


def _create_topics(cluster: KafkaCluster, settings: Settings) -> None:
    cluster.ping()
    cluster.create_topics(declared_topics(settings))


def open_publisher(settings: Settings, brokers: Brokers) -> Publisher:
    """Return a publisher of events to `brokers`; closing it waits for queued messages."""
    return Publisher(
        brokers,
        queue_messages=settings.publish_queue_messages,
        queue_kbytes=settings.publish_queue_kbytes,
        linger_ms=settings.publish_linger_ms,
        timeout_s=settings.publish_timeout_s,
    )


@asynccontextmanager
async def running_publisher(settings: Settings, brokers: Brokers) -> AsyncIterator[Publisher]:
    """Yield a publisher of events to `brokers`."""
    async with _closing(open_publisher(settings, brokers)) as publisher:
        yield publisher


@asynccontextmanager
async def running_command_publisher(
    settings: Settings, brokers: Brokers
) -> AsyncIterator[Publisher]:
    """Yield a separate publisher for commands, so that a backlog of events does not delay them."""
    publisher = Publisher(
        brokers,
        queue_messages=100_000,
        queue_kbytes=settings.publish_queue_kbytes,
        linger_ms=0,
        timeout_s=settings.publish_timeout_s,
    )
    async with _closing(publisher):
        yield publisher


@asynccontextmanager
async def _closing(publisher: Publisher) -> AsyncIterator[Publisher]:
    try:
        yield publisher
    finally:
        await asyncio.to_thread(publisher.close)
