"""Tests of the library's internals that are read without a connection."""

from pathlib import Path

import pytest
from aioquic.tls import CipherSuite

from mev.realtime.webtransport import quic

AES, CHACHA = CipherSuite.AES_128_GCM_SHA256, CipherSuite.CHACHA20_POLY1305_SHA256


@pytest.mark.parametrize(
    ("has_aes", "first", "last"),
    [(True, AES, CHACHA), (False, CHACHA, CipherSuite.AES_256_GCM_SHA384)],
)
def test_the_order_of_the_ciphers(has_aes: bool, first: CipherSuite, last: CipherSuite) -> None:
    order = quic.cipher_order(has_aes=has_aes)
    assert (order[0], order[-1], len(set(order))) == (first, last, 3)


@pytest.mark.parametrize(
    ("content", "has_aes"),
    [
        ("flags\t\t: fpu aes avx\n", True),
        ("Features\t: fp asimd aes pmull\n", True),
        ("flags\t\t: fpu vaes\n", False),
        ("model name\t: aes engine\n", False),
        ("", False),
    ],
)
def test_what_the_processor_says(tmp_path: Path, content: str, has_aes: bool) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    assert quic.processor_has_aes(tmp_path / "cpuinfo") is has_aes


def test_the_configuration_prefers_what_the_processor_has() -> None:
    suites = quic.configuration(idle_timeout_s=30, max_datagram_bytes=1350).cipher_suites
    assert suites == quic.cipher_order(has_aes=quic.processor_has_aes())


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (0, 0x52E4A40FA8DB),
        (0x1D, 0x52E4A40FA8F8),
        (0x1E, 0x52E4A40FA8FA),
        (0xFFFFFFFF, 0x52E5AC983162),
    ],
)
def test_stream_errors(code: int, shown: int) -> None:
    assert quic.stream_error(code) == shown


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 40, b"\xc0\0\0\0\1\xff"])
def test_no_header(data: bytes) -> None:
    assert quic.read_header(data, 8) is None
