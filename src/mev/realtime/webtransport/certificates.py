"""The certificate that WebTransport shows: files of the operator, read again when they change, or one of our own.

Browsers take a certificate that no authority has signed when a page names its hash, and only a short-lived one: ECDSA on P-256, valid
for at most 14 days. So ours is replaced some days before it ends.
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
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from mev.core.errors import MevError
from mev.core.files import write_atomically

LIFETIME = timedelta(days=13)
RENEW_BEFORE = timedelta(days=3)
_BACKDATED = timedelta(hours=1)  # clocks differ
_FILE = "certificate.pem"


class CertificateError(MevError):
    """The certificate of WebTransport cannot be used."""

    code = "certificate_unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate, those that lead from it to an authority, and its key."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes
    self_signed: bool = False
    """Whether browsers take it only by its hash."""

    @property
    def sha256(self) -> str:
        """The hash that pages name it by, in base64."""
        return base64.b64encode(hashlib.sha256(self.chain[0].public_bytes(Encoding.DER)).digest()).decode()


class Source(Protocol):
    """Where certificates come from."""

    def look(self) -> Certificate | None:
        """Return the certificate to show from now on, None when that is still the last one.

        :raises CertificateError: when there is one that cannot be used.
        """


class Files:
    """Files that somebody else renews."""

    def __init__(self, certificate: Path, key: Path | None = None) -> None:
        self._paths = (certificate, key or certificate)
        self._seen: tuple[tuple[int, int, int], ...] = ()

    def look(self) -> Certificate | None:
        """Return what the files hold if they have changed."""
        try:
            stats = [path.stat() for path in self._paths]
            seen = tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)
            if seen == self._seen:
                return None
            found = parse(*(path.read_bytes() for path in self._paths))
        except (OSError, ValueError, TypeError) as error:
            raise CertificateError(f"{error}; WT_CERTIFICATE_FILE and WT_KEY_FILE name PEM files that belong together") from None
        self._seen = seen
        return found


class SelfSigned:
    """A certificate of our own in `folder`, made again before it ends; processes that share the folder share it."""

    def __init__(self, folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = folder / _FILE
        self._now = now
        self._ends: datetime | None = None

    def look(self) -> Certificate | None:
        """Return another certificate when the last one has only days left."""
        if self._ends is not None and self._is_fresh(self._ends):
            return None
        found = self._kept() or self._made()
        self._ends = found.chain[0].not_valid_after_utc
        return found

    def _is_fresh(self, ends: datetime) -> bool:
        return RENEW_BEFORE < ends - self._now() < LIFETIME

    def _kept(self) -> Certificate | None:
        try:
            if self._path.stat().st_mode & 0o077:  # others may have read the key
                return None
            content = self._path.read_bytes()
            found = parse(content, content, self_signed=True)
        except (OSError, ValueError, TypeError):
            return None
        return found if self._is_fresh(found.chain[0].not_valid_after_utc) else None

    def _made(self) -> Certificate:
        found = self_signed(self._now())
        key = found.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._path, found.chain[0].public_bytes(Encoding.PEM) + key)
        return found


def parse(certificates: bytes, key: bytes, *, self_signed: bool = False) -> Certificate:
    """Read PEM.

    :raises ValueError, TypeError: when it cannot be read, or the key is of another certificate.
    """
    chain = tuple(x509.load_pem_x509_certificates(certificates))
    found = load_pem_private_key(key, None)
    if _public(found.public_key()) != _public(chain[0].public_key()):
        raise ValueError("the private key does not belong to the certificate")
    return Certificate(chain=chain, key=found, self_signed=self_signed)


def self_signed(now: datetime) -> Certificate:
    """Return a new certificate that browsers take by its hash."""
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
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]
