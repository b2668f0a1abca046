"""Tests of TLS, SASL and topics on a real broker that requires both of its clients."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mev import settings
from mev.bus.boot import external_brokers
from mev.bus.kafka import BrokerUnavailableError, KafkaCluster
from mev.cli.topics import topics
from mev.wire.registry import BY_TOPIC
from mev.wire.topics import AUDIT, CONTROL
from tests.services.kafka import RealKafka, real_kafka
from tests.services.service import free_port
from tests.services.waits import until

pytestmark = pytest.mark.real_kafka
PASSWORD = 'a password, with = and " signs'
LISTENER = """
listeners=PLAINTEXT://127.0.0.1:{{port}},SECURE://127.0.0.1:{secure},\
CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},SECURE://localhost:{secure}
controller.quorum.voters=1@127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
inter.broker.listener.name=PLAINTEXT
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.name.secure.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_plain="plain-secret";
listener.name.secure.scram-sha-256.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={folder}/server.pem
listener.name.secure.ssl.truststore.type=PEM
listener.name.secure.ssl.truststore.location={folder}/ca.crt
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an authority and a certificate of the server."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("req", "-x509", "-newkey", "rsa:2048", "-nodes")
    openssl(*key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=Test CA")
    openssl(
        *(*key, "-keyout", "server.key", "-out", "server.crt", "-subj", "/CN=localhost"),
        *("-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost"),
    )
    texts = [(folder / name).read_text() for name in ("server.key", "server.crt")]
    (folder / "server.pem").write_text("".join(texts))
    return folder


@pytest.fixture(scope="module")
def secure(
    certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RealKafka, str]]:
    """Run a broker; yield it and the address at which it requires TLS and SASL."""
    port = free_port()
    more = LISTENER.format(secure=port, controller=free_port(), folder=certificates)
    users = ['SCRAM-SHA-256=[name="scram",password="scram-secret"]']
    with real_kafka(tmp_path_factory.mktemp("secure"), more=more, users=users) as server:
        yield server, f"localhost:{port}"
    shutil.rmtree(server.folder / "data", ignore_errors=True)


def cluster(**given: object) -> KafkaCluster:
    brokers = external_brokers(settings.load(**given))
    assert brokers is not None
    return KafkaCluster(brokers, timeout_s=10)


@pytest.mark.parametrize(
    ("mechanism", "user", "password"),
    [
        pytest.param("PLAIN", "plain", "plain-secret", marks=pytest.mark.slow),
        ("SCRAM-SHA-256", "scram", "scram-secret"),
    ],
)
def test_named_settings_log_in_with_tls(
    secure: tuple[RealKafka, str], certificates: Path, mechanism: str, user: str, password: str
) -> None:
    given: dict[str, object] = {
        "kafka_brokers": secure[1],
        "kafka_sasl_mechanism": mechanism,
        "kafka_sasl_username": user,
        "kafka_sasl_password": password,
        "kafka_tls_ca_file": certificates / "ca.crt",
    }
    assert cluster(**given).ping() == 1
    with pytest.raises(BrokerUnavailableError, match=r"uthentication failed.*KAFKA_SASL"):
        cluster(**{**given, "kafka_sasl_password": "wrong"}).ping()
    unknown = {**given, "kafka_tls_ca_file": None, "kafka_tls": True}
    with pytest.raises(BrokerUnavailableError, match=r"verify failed.*KAFKA_TLS"):
        cluster(**unknown).ping()


def test_settings_give_the_properties_of_the_client_and_are_masked() -> None:
    given = settings.load(
        kafka_brokers="kafka:9093",
        kafka_sasl_mechanism="OAUTHBEARER",
        kafka_sasl_username="mev",
        kafka_sasl_password="secret",
        kafka_oauth_token_url="https://login.example/token",
        kafka_tls=True,
        kafka_options=json.dumps({"sasl.oauthbearer.scope": "kafka"}),
    )
    brokers = external_brokers(given)
    assert brokers is not None
    assert brokers.options == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": "https://login.example/token",
        "sasl.oauthbearer.client.id": "mev",
        "sasl.oauthbearer.client.secret": "secret",
        "sasl.oauthbearer.scope": "kafka",
    }
    assert not any("secret" in value for _, value, _, _ in settings.shown(given))


def test_topics_are_shown_compared_and_changed(
    secure: tuple[RealKafka, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", secure[0].brokers)
    event = next(iter(BY_TOPIC))

    def run(*arguments: str) -> tuple[int, dict[tuple[str, str], list[str]]]:
        result = CliRunner().invoke(topics, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        rows = [re.split(r" {2,}", line.strip()) for line in result.stdout.splitlines()[1:]]
        return result.exit_code, {(row[0], row[1]): row[2:] for row in rows if len(row) > 2}

    code, found = run("diff")
    assert code == 1
    assert found[event, "topic"][0] == "missing"
    assert run("apply")[0] == 0
    until(lambda: run("diff"), lambda seen: seen == (0, {}))  # the brokers learn it a little later
    monkeypatch.setenv("KAFKA_TOPIC_RETENTION_S", "3600")
    monkeypatch.setenv("KAFKA_TOPIC_PARTITIONS", "6")
    code, found = run("diff")
    assert code == 1
    assert found[event, "partitions"] == ["4", "6", "grow"]
    assert found[event, "retention.ms"] == ["604800000", "3600000", "set"]
    assert (AUDIT, "retention.ms") not in found
    assert (CONTROL, "partitions") not in found
    code, found = run("apply")
    assert code == 1
    assert found[event, "partitions"] == ["4", "6", "grow"]
    assert run("apply", "--grow-partitions")[0] == 0
    until(lambda: run("diff"), lambda seen: seen == (0, {}))  # the brokers learn it a little later
    monkeypatch.setenv("KAFKA_TOPIC_PARTITIONS", "5")
    monkeypatch.setenv("KAFKA_TOPIC_REPLICATION", "3")
    code, found = run("apply", "--grow-partitions")
    assert code == 1
    assert found[event, "partitions"] == ["6", "5", "by hand"]
    assert found[event, "replication"] == ["1", "3", "by hand"]
