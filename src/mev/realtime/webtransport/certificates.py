"""Certificates for WebTransport: the operator's files, reloaded on change, or a self-signed one.

Browsers accept a self-signed certificate only by its hash, and only a short-lived one: ECDSA on
P-256, valid for at most 14 days. It is therefore replaced some days before it expires.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from mev.core.errors import MevError
from mev.core.files import write_atomically

LIFETIME = timedelta(days=13)
RENEW_BEFORE = timedelta(days=3)
_BACKDATED = timedelta(hours=1)  # clocks differ
_FILE = "certificate.pem"


class CertificateError(MevError):
    """The WebTransport certificate cannot be used."""

    code = "certificate_unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate with its chain and private key."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes
    self_signed: bool = False
    """True if browsers accept it only by its hash."""

    @property
    def sha256(self) -> str:
        """The hash for browsers, in base64."""
        return base64.b64encode(
            hashlib.sha256(self.chain[0].public_bytes(Encoding.DER)).digest()
        ).decode()


class CertificateSource(Protocol):
    """Source of certificates."""

    def reload(self) -> Certificate | None:
        """Return the certificate to use from now on, None if it is unchanged.

        :raises CertificateError: if it cannot be used.
        """


class Files:
    """Certificate files that the operator renews."""

    def __init__(self, certificate: Path, key: Path | None = None) -> None:
        self._paths = (certificate, key or certificate)
        self._seen: tuple[tuple[int, int, int], ...] = ()

    def reload(self) -> Certificate | None:
        """Return the certificate in the files if they have changed."""
        try:
            stats = [path.stat() for path in self._paths]
            seen = tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)
            if seen == self._seen:
                return None
            found = parse(*(path.read_bytes() for path in self._paths))
        except (OSError, ValueError, TypeError) as error:
            raise CertificateError(
                f"{error}; WT_CERTIFICATE_FILE and WT_KEY_FILE name PEM files that belong together"
            ) from None
        self._seen = seen
        return found


class SelfSigned:
    """A self-signed certificate in `folder`, renewed before it expires.

    Processes with the same folder share it.
    """

    def __init__(
        self, folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._path = folder / _FILE
        self._now = now
        self._ends: datetime | None = None

    def reload(self) -> Certificate | None:
        """Return a new certificate if the last one expires within days."""
        if self._ends is not None and self._is_fresh(self._ends):
            return None
        found = self._stored() or self._create()
        self._ends = found.chain[0].not_valid_after_utc
        return found

    def _is_fresh(self, ends: datetime) -> bool:
        return RENEW_BEFORE < ends - self._now() < LIFETIME

    def _stored(self) -> Certificate | None:
        try:
            if self._path.stat().st_mode & 0o077:  # others may have read the key
                return None
            content = self._path.read_bytes()
            found = parse(content, content, self_signed=True)
        except (OSError, ValueError, TypeError):
            return None
        return found if self._is_fresh(found.chain[0].not_valid_after_utc) else None

    def _create(self) -> Certificate:
        found = self_signed(self._now())
        key = found.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._path, found.chain[0].public_bytes(Encoding.PEM) + key)
        return found


def parse(certificates: bytes, key: bytes, *, self_signed: bool = False) -> Certificate:
    """Return the certificate and key in PEM data.

    :raises ValueError, TypeError: if it is malformed, or the key does not match.
    """
    chain = tuple(x509.load_pem_x509_certificates(certificates))
    found = load_pem_private_key(key, None)
    if _public(found.public_key()) != _public(chain[0].public_key()):
        raise ValueError("the private key does not belong to the certificate")
    return Certificate(chain=chain, key=found, self_signed=self_signed)


def self_signed(now: datetime) -> Certificate:
    """Return a new certificate that browsers accept by its hash."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mev WebTransport")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now - _BACKDATED + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(chain=(certificate,), key=key, self_signed=True)


def _public(key: object) -> bytes:
    spki: bytes = key.public_bytes(  # type: ignore[attr-defined]
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return spki
