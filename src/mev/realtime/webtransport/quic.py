"""Access to internals of aioquic: stream progress, stream limits, datagram sizes.

Only this module uses private attributes of aioquic; the version is pinned because of it.
"""

import contextlib
import platform
from pathlib import Path

from aioquic._buffer import Buffer
from aioquic.buffer import encode_uint_var, size_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import QuicHeader, pull_quic_header
from aioquic.quic.packet_builder import PACKET_NUMBER_SEND_SIZE
from aioquic.tls import CipherSuite

_CPUINFO = Path("/proc/cpuinfo")
_TAG_BYTES = 16
_STREAM_TYPE = 0x54
_APPLICATION_ERRORS = 0x52E4A40FA8DB
_RECEIVE_BYTES = 128 * 1024


def configuration(*, idle_timeout_s: float, max_datagram_bytes: int) -> QuicConfiguration:
    """Return the configuration of a server's connections, without the certificate."""
    return QuicConfiguration(
        is_client=False,
        alpn_protocols=["h3"],
        idle_timeout=idle_timeout_s,
        max_datagram_size=max_datagram_bytes,
        max_datagram_frame_size=65_535,
        max_data=_RECEIVE_BYTES,
        max_stream_data=_RECEIVE_BYTES,
        cipher_suites=cipher_order(has_aes=processor_has_aes()),
    )


def cipher_order(*, has_aes: bool) -> list[CipherSuite]:
    """Return the cipher suites in order of preference.

    AES comes first if the processor has instructions for it, else ChaCha20.
    """
    aes = [CipherSuite.AES_128_GCM_SHA256, CipherSuite.AES_256_GCM_SHA384]
    chacha = [CipherSuite.CHACHA20_POLY1305_SHA256]
    return [*aes, *chacha] if has_aes else [*chacha, *aes]


def processor_has_aes(cpuinfo: Path = _CPUINFO) -> bool:
    """Return whether the processor has AES instructions.

    If that cannot be read, it is assumed for common architectures.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine().lower() in {"x86_64", "amd64", "aarch64", "arm64"}
    return any(
        "aes" in line.split() for line in lines if line.lower().startswith(("flags", "features"))
    )


def stream_error(code: int) -> int:
    """Return the HTTP/3 error code that browsers show as the WebTransport stream error `code`."""
    return _APPLICATION_ERRORS + code + code // 0x1E


class SendStream:
    """The sending side of a stream."""

    __slots__ = ("_quic", "_sender", "id")

    def __init__(self, quic: QuicConnection, stream_id: int) -> None:
        self.id = stream_id
        self._quic = quic
        self._sender = quic._streams[stream_id].sender  # noqa: SLF001

    def write(self, data: bytes | memoryview, *, end: bool = False) -> None:
        """Write data; no effect once the stream was reset."""
        if not self.was_reset:
            # It copies into a bytearray.
            self._quic.send_stream_data(self.id, data, end)  # type: ignore[arg-type]

    def reset(self, code: int) -> None:
        """Reset the stream; data that has not arrived is dropped."""
        self._quic.reset_stream(self.id, stream_error(code))

    @property
    def is_finished(self) -> bool:
        """True if the peer has acknowledged everything, or the reset."""
        return bool(self._sender.is_finished)

    @property
    def was_reset(self) -> bool:
        """True if we reset the stream, or the peer stopped it."""
        return self._sender._reset_error_code is not None  # noqa: SLF001

    @property
    def acknowledged(self) -> int:
        """Number of bytes up to the first that the peer has not acknowledged."""
        return self._sender._buffer_start  # noqa: SLF001

    @property
    def unacknowledged(self) -> int:
        """Number of bytes from the first that the peer has not acknowledged."""
        return 0 if self.was_reset else len(self._sender._buffer)  # noqa: SLF001

    @property
    def unsent(self) -> int:
        """Number of bytes that have never been in a packet."""
        if self.was_reset:
            return 0
        return self._sender._buffer_stop - self._sender.highest_offset  # noqa: SLF001


def read_header(data: bytes, own_id_bytes: int) -> QuicHeader | None:
    """Return the header of the first packet in a datagram, None if it has none."""
    try:
        return pull_quic_header(Buffer(data=data), host_cid_length=own_id_bytes)
    except ValueError:
        return None


def is_blank(quic: QuicConnection) -> bool:
    """Return whether no packet of a server's connection could be decrypted so far."""
    return quic._state is QuicConnectionState.FIRSTFLIGHT  # noqa: SLF001


def is_about_to_close(quic: QuicConnection) -> bool:
    """Return whether the next packets are the last, with the close reason."""
    return quic._close_pending  # noqa: SLF001


def idle_timeout_s(quic: QuicConnection) -> float:
    """Return the negotiated idle time-out of the connection."""
    return quic._idle_timeout()  # noqa: SLF001


def idle_at(quic: QuicConnection) -> float | None:
    """Return the time of the idle time-out, None if the connection has ended."""
    return quic._close_at  # noqa: SLF001


def stop_pacing(quic: QuicConnection) -> None:
    """Disable pacing: only the congestion window limits sending."""
    quic._loss._pacer.update_rate = _ignore_rate  # type: ignore[method-assign] # noqa: SLF001


def may_open_stream(quic: QuicConnection) -> bool:
    """Return whether the peer allows another unidirectional stream."""
    stream_id: int = quic.get_next_available_stream_id(is_unidirectional=True)
    return stream_id // 4 < quic._remote_max_streams_uni  # noqa: SLF001


def open_stream(quic: QuicConnection, session_id: int) -> SendStream:
    """Open a unidirectional stream of a WebTransport session."""
    stream_id = quic.get_next_available_stream_id(is_unidirectional=True)
    quic.send_stream_data(stream_id, encode_uint_var(_STREAM_TYPE) + encode_uint_var(session_id))
    return SendStream(quic, stream_id)


def datagram_bytes(quic: QuicConnection, session_id: int) -> int:
    """Return the maximum size of a WebTransport datagram; 0 if the peer accepts none."""
    limit = quic._remote_max_datagram_frame_size  # noqa: SLF001
    if limit is None:
        return 0
    peer_ids = [quic._peer_cid, *quic._peer_cid_available]  # noqa: SLF001
    packet = 1 + max(len(each.cid) for each in peer_ids) + PACKET_NUMBER_SEND_SIZE + _TAG_BYTES
    frame = min(limit, quic.configuration.max_datagram_size - packet)
    # Type, length and session id. aioquic would retry a datagram that fits no packet endlessly.
    return max(0, frame - 1 - size_uint_var(frame) - size_uint_var(session_id // 4))


def datagram(session_id: int, payload: bytes) -> bytes:
    """Return a datagram of a WebTransport session in its QUIC encoding."""
    return encode_uint_var(session_id // 4) + payload


def datagrams_waiting(quic: QuicConnection) -> int:
    """Return the number of unsent datagrams."""
    return len(quic._datagrams_pending)  # noqa: SLF001


def send_newest_datagram(quic: QuicConnection, data: bytes, *, waiting: int) -> bool:
    """Queue a datagram behind at most `waiting` others; return whether the oldest was dropped."""
    pending = quic._datagrams_pending  # noqa: SLF001
    full = len(pending) >= waiting
    if full:
        pending.popleft()
    quic.send_datagram_frame(data)
    return full


def refuse_stream(quic: QuicConnection, stream_id: int, code: int) -> None:
    """Refuse a stream opened by the peer, in both directions."""
    with contextlib.suppress(ValueError):  # it has ended already
        quic.stop_stream(stream_id, stream_error(code))
    if stream_id % 4 == 0:
        with contextlib.suppress(ValueError):
            quic.reset_stream(stream_id, stream_error(code))


def _ignore_rate(congestion_window: int, smoothed_rtt: float) -> None:
    del congestion_window, smoothed_rtt
