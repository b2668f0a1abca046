"""Tests of TLS to an S3 server whose certificate a private authority signed."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mev.settings import InvalidSettingsError, load
from mev.store.object_errors import ObjectStoreUnavailableError
from mev.store.objects import open_object_store

AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
SERVER = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])


class Nothing(BaseHTTPRequestHandler):
    """Answers that there is no such object."""

    def do_GET(self) -> None:
        body = b"<Error><Code>NoSuchKey</Code></Error>"
        self.send_response(404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that refuse the certificate."""


def write_certificates(folder: Path, days: int) -> None:
    """Write an authority and a server certificate that is valid for `days` from now."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = datetime.now(UTC)

    def signed(subject: x509.Name, of: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        end = now + timedelta(days=30 if ca else days)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(AUTHORITY)
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(authority_key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    (folder / "ca.pem").write_bytes(signed(AUTHORITY, authority_key, ca=True))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(secret + signed(SERVER, key, ca=False))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    with QuietServer(("127.0.0.1", 0), Nothing) as server:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"https://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


def asked(url: str, bundle: Path | None) -> object:
    given = {"object_store_tls_ca_file": bundle} if bundle else {}
    objects = open_object_store(
        load(
            object_store="s3://bucket",
            aws_endpoint_url=url,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            **given,
        )
    )
    assert objects is not None
    return objects.document("models.json")


def test_a_private_authority_is_trusted_once_it_is_named(tmp_path: Path) -> None:
    write_certificates(tmp_path, days=1)
    with serving(tmp_path) as url:
        assert asked(url, tmp_path / "ca.pem") is None
        with pytest.raises(ObjectStoreUnavailableError, match="OBJECT_STORE_TLS_CA_FILE") as caught:
            asked(url, None)
    assert "UnknownIssuer" in caught.value.detail


def test_an_expired_certificate_is_named(tmp_path: Path) -> None:
    write_certificates(tmp_path, days=-1)
    with (
        serving(tmp_path) as url,
        pytest.raises(ObjectStoreUnavailableError, match="renew the certificate") as caught,
    ):
        asked(url, tmp_path / "ca.pem")
    assert "Expired" in caught.value.detail


def test_a_bundle_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for content in (None, b"no certificate"):
        bundle = tmp_path / "ca.pem"
        if content is not None:
            bundle.write_bytes(content)
        with pytest.raises(
            ObjectStoreUnavailableError, match=f"{bundle} .OBJECT_STORE_TLS_CA_FILE."
        ):
            asked("https://localhost:1", bundle)


def test_a_bundle_without_tls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match="OBJECT_STORE_TLS_CA_FILE"):
        load(aws_endpoint_url="http://localhost:1", object_store_tls_ca_file=tmp_path / "ca.pem")
