"""Certificates of our own, and of others."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mev.realtime.webtransport.certificates import (
    Certificate,
    CertificateError,
    Files,
    SelfSigned,
    self_signed,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Clock:
    """A manual clock."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def pem(certificate: Certificate) -> tuple[bytes, bytes]:
    key = certificate.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.chain[0].public_bytes(Encoding.PEM), key


def test_what_browsers_take_by_hash() -> None:
    made = self_signed(NOW)
    (shown,) = made.chain
    public = shown.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)
    assert shown.not_valid_after_utc - shown.not_valid_before_utc < timedelta(days=14)
    assert shown.not_valid_before_utc < NOW < shown.not_valid_after_utc
    assert len(made.sha256) == 44


def test_ours_is_kept_private_shared_and_renewed_before_it_ends(tmp_path: Path) -> None:
    folder, clock = tmp_path / "wt", Clock()
    source = SelfSigned(folder, clock)
    first = source.reload()
    assert first is not None
    assert first.self_signed
    assert (folder / "certificate.pem").stat().st_mode & 0o777 == 0o600
    assert source.reload() is None
    assert SelfSigned(folder, clock).reload() == Certificate(
        chain=first.chain,
        key=_Any(),  # type: ignore[arg-type]
        self_signed=True,
    )
    clock.now += timedelta(days=9)
    assert source.reload() is None
    clock.now += timedelta(days=1)
    second = source.reload()
    assert second is not None
    assert second.chain != first.chain
    assert source.reload() is None


@pytest.mark.parametrize("damage", ["garbage", "mode", "future"])
def test_a_kept_one_that_is_no_good_is_made_again(tmp_path: Path, damage: str) -> None:
    clock = Clock()
    first = SelfSigned(tmp_path, clock).reload()
    assert first is not None
    if damage == "garbage":
        (tmp_path / "certificate.pem").write_bytes(b"nonsense")
    elif damage == "mode":
        (tmp_path / "certificate.pem").chmod(0o644)
    else:
        clock.now -= timedelta(days=30)  # the clock was wrong when it was made
    second = SelfSigned(tmp_path, clock).reload()
    assert second is not None
    assert second.chain != first.chain
    assert (tmp_path / "certificate.pem").stat().st_mode & 0o777 == 0o600


def test_files_are_read_when_they_change_and_never_half(tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    first, second = self_signed(NOW), self_signed(NOW)
    chain.write_bytes(pem(first)[0])
    key.write_bytes(pem(first)[1])
    source = Files(chain, key)
    found = source.reload()
    assert found is not None
    assert (found.chain, found.self_signed) == (first.chain, False)
    assert source.reload() is None
    chain.write_bytes(pem(second)[0])
    with pytest.raises(CertificateError, match="does not belong"):
        source.reload()
    key.write_bytes(pem(second)[1])
    found = source.reload()
    assert found is not None
    assert found.chain == second.chain
    key.unlink()
    with pytest.raises(CertificateError, match="WT_KEY_FILE"):
        source.reload()


def test_one_file_may_hold_both_and_the_chain(tmp_path: Path) -> None:
    made, authority = self_signed(NOW), self_signed(NOW)
    path = tmp_path / "all.pem"
    path.write_bytes(pem(made)[0] + pem(authority)[0] + pem(made)[1])
    os.utime(path)
    found = Files(path).reload()
    assert found is not None
    assert found.chain == (*made.chain, *authority.chain)


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0
