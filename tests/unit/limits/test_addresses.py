import pytest

from mev.limits.addresses import Addresses, parse_network

PROXIES = Addresses([parse_network("10.0.0.0/8"), parse_network("::1")])


def forwarded(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", value.encode("latin-1")) for value in values]


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("1.2.3.4", forwarded("9.9.9.9"), "1.2.3.4"),
        ("10.1.1.1", forwarded("9.9.9.9"), "9.9.9.9"),
        ("::ffff:10.1.1.1", forwarded("9.9.9.9"), "9.9.9.9"),
        ("10.1.1.1", forwarded("6.6.6.6, 9.9.9.9"), "9.9.9.9"),
        ("10.1.1.1", forwarded("6.6.6.6, 9.9.9.9, 10.2.2.2"), "9.9.9.9"),
        ("10.1.1.1", forwarded("6.6.6.6", "9.9.9.9"), "9.9.9.9"),
        ("10.1.1.1", forwarded("9.9.9.9, nonsense"), "10.1.1.1"),
        ("10.1.1.1", forwarded("\xff\r\n"), "10.1.1.1"),
        ("10.1.1.1", forwarded(", ".join(["10.0.0.1"] * 1000)), "10.0.0.1"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("", [], ""),
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("::1", forwarded("2001:db8::1"), "2001:db8::/64"),
    ],
)
def test_who_a_request_counts_for(
    peer: str, headers: list[tuple[bytes, bytes]], client: str
) -> None:
    assert PROXIES.client(peer, headers) == client


def test_without_proxies_nothing_forwarded_is_believed() -> None:
    assert Addresses().client("127.0.0.1", forwarded("9.9.9.9")) == "127.0.0.1"
    assert not Addresses().is_secure("http", "127.0.0.1", [(b"x-forwarded-proto", b"https")])


def test_a_proxy_says_whether_the_client_came_by_tls() -> None:
    https = [(b"x-forwarded-proto", b"https")]
    assert PROXIES.is_secure("http", "10.1.1.1", https)
    assert PROXIES.is_secure("https", "1.2.3.4", [])
    assert not PROXIES.is_secure("http", "1.2.3.4", https)
    assert not PROXIES.is_secure("http", "10.1.1.1", [(b"x-forwarded-proto", b"http")])
