"""Client address of a request: the peer's, or the one reported by a trusted proxy."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
_MAX_HOPS = 20


class Addresses:
    """Reads ``X-Forwarded-For`` and ``X-Forwarded-Proto`` from peers in `trusted` networks only."""

    def __init__(self, trusted: Sequence[Network] = ()) -> None:
        self._trusted = tuple(trusted)

    def is_proxy(self, peer: str) -> bool:
        """Return whether `peer` is a trusted proxy."""
        if not self._trusted:
            return False
        address = _parse(peer)
        return address is not None and any(address in network for network in self._trusted)

    def client(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the address that a request's limits apply to.

        For IPv6 it is the /64 network, which one customer usually gets.
        """
        if self.is_proxy(peer):
            hops = ",".join(
                value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"
            ).split(",")[-_MAX_HOPS:]
            for hop in reversed(hops):
                if _parse(hop.strip()) is None:
                    break
                peer = hop.strip()
                if not self.is_proxy(peer):
                    break
        return _counted(peer)

    def is_secure(self, scheme: str, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether the client's connection is encrypted."""
        if scheme == "https":
            return True
        return self.is_proxy(peer) and any(
            name == b"x-forwarded-proto" and value.strip().lower() == b"https"
            for name, value in headers
        )


def parse_network(text: str) -> Network:
    """Return the network or single address in `text`.

    :raises ValueError: if it is malformed.
    """
    return ip_network(text.strip(), strict=False)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _counted(peer: str) -> str:
    address = _parse(peer)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address) if address else peer
