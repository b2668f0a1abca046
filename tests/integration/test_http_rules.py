"""Tests of the server rules of RFC 9110 and RFC 9112, by bytes on a socket."""

import gzip
import re
import socket
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx
import pytest
import zstandard

from tests.services.system import RunningSystem

BUNDLE = b'{"bundle_id": "coded", "slot": 1}'
BIG = 64 << 20


@dataclass(frozen=True)
class Answer:
    """A raw answer: status, headers by lower-case name, and all that follows them."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Wire:
    """Sends bytes to the system's port."""

    system: RunningSystem

    def send(self, request: bytes) -> Answer:
        """Return the answer to `request`, after which the server closes the connection."""
        host, port = self.system.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(request)
            data = b"".join(iter(lambda: connection.recv(65_536), b""))
        head, _, body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(re.split(r":\s*", line, maxsplit=1) for line in lines)
        return Answer(int(status.split(" ")[1]), headers, body)

    def ask(self, method: str, path: str, *lines: str, body: bytes = b"") -> Answer:
        """Return the answer to a request with the key and `lines` as headers."""
        length = [f"Content-Length: {len(body)}"] if body else []
        fixed = ["Host: mev", f"X-API-Key: {self.system.key}", "Connection: close"]
        head = [f"{method} {path} HTTP/1.1", *fixed, *length, *lines, "", ""]
        return self.send("\r\n".join(head).encode() + body)

    def post(self, body: bytes, *lines: str) -> Answer:
        """Return the answer to a POST of events in JSON."""
        return self.ask(
            "POST", "/api/events/bundle", "Content-Type: application/json", *lines, body=body
        )


@pytest.fixture
def wire(system: RunningSystem) -> Wire:
    return Wire(system)


def methods(allow: str) -> set[str]:
    return set(allow.split(", "))


def get_paths(http: httpx.Client) -> Iterator[str]:
    document = http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        if "get" in operations and path != "/api/events/{type}":
            yield re.sub(r"{\w+}", "none", path)
    yield from ("/openapi.json", "/docs", "/docs/assets/start.js", "/docs/assets/swagger-ui.css")
    yield "/api/events/bundle"


VARYING = {"date", "ratelimit-remaining", "ratelimit-reset", "content-length"}


def test_head_is_answered_as_get_without_body_on_every_path(wire: Wire, http: httpx.Client) -> None:
    for path in get_paths(http):
        head, get = wire.ask("HEAD", path), wire.ask("GET", path)
        assert head.body == b"", path
        assert head.status == get.status, path
        changing = VARYING | (
            {"transfer-encoding"} if "transfer-encoding" in get.headers else set()
        )
        fixed = [{n: v for n, v in a.headers.items() if n not in changing} for a in (head, get)]
        assert fixed[0] == fixed[1], path
        assert ("content-length" in head.headers) == ("content-length" in get.headers), path


def test_head_needs_the_permission_of_get(system: RunningSystem) -> None:
    assert httpx.head(f"{system.url}/api/auth/me").status_code == 401
    assert httpx.head(f"{system.url}/api/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/health/", {"GET", "HEAD", "OPTIONS"}),
        ("/api/events/bundle", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/api/control/kill-switch", {"POST", "OPTIONS"}),
        ("/api/auth/users", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/api/realtime/ws", {"GET", "HEAD", "OPTIONS"}),
        ("/docs/assets/start.js", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_options_and_refused_methods_name_what_a_path_takes(
    wire: Wire, path: str, allowed: set[str]
) -> None:
    options = wire.ask("OPTIONS", path)
    assert (options.status, options.body) == (204, b"")
    assert "content-length" not in options.headers
    assert methods(options.headers["allow"]) == allowed
    for method in {"PUT", "DELETE", "PATCH", "POST", "GET", "TRACE"} - allowed:
        refused = wire.ask(method, path)
        assert refused.status == 405, method
        assert b'"method_not_allowed"' in refused.body
        assert methods(refused.headers["allow"]) == allowed


def test_options_of_no_path_is_404_and_of_the_server_names_its_methods(wire: Wire) -> None:
    assert wire.ask("OPTIONS", "/api/nope").status == 404
    whole = wire.ask("OPTIONS", "*")
    assert whole.status == 204
    assert {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} <= methods(whole.headers["allow"])


@pytest.mark.parametrize(
    "path", ["/api/events/bundle/?limit=1", "/api/auth/me/", "//evil.example/"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_trailing_slash_sends_nobody_elsewhere(wire: Wire, path: str, method: str) -> None:
    head = f"{method} {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n"
    answer = wire.send(f"{head}X-API-Key: {wire.system.key}\r\n\r\n".encode())
    assert answer.status == 404
    assert "location" not in answer.headers
    assert "evil.example" not in str(answer.headers)


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param([], id="none"),
        pytest.param(["a", "b"], id="two"),
        pytest.param(["a", "a"], id="the same twice"),
        pytest.param([""], id="empty"),
        pytest.param(["a b"], id="white space"),
        pytest.param(["a,b"], id="a list"),
        pytest.param(["a/b"], id="a path"),
        pytest.param(["user@a"], id="a user"),
        pytest.param(["a:port"], id="a port that is no number"),
        pytest.param(["[::1"], id="half a bracket"),
        pytest.param(["http://a"], id="a URL"),
    ],
)
def test_request_without_exactly_one_valid_host_is_refused(wire: Wire, hosts: list[str]) -> None:
    lines = [f"Host: {host}" for host in hosts]
    for path in ("/api/health/", "/api/events/bundle?limit=1", "/api/realtime/ws"):
        answer = wire.send("\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode())
        assert answer.status == 400
        assert b'"bad_host"' in answer.body


@pytest.mark.parametrize("host", ["mev", "mev.example:8000", "127.0.0.1", "[::1]:80", "a_b", "x:"])
def test_request_with_a_valid_host_is_answered(wire: Wire, host: str) -> None:
    request = f"GET /api/health/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    assert wire.send(request.encode()).status == 200


def test_http_1_0_needs_no_host(wire: Wire) -> None:
    assert wire.send(b"GET /api/health/ HTTP/1.0\r\n\r\n").status == 200
    assert wire.send(b"GET /api/health/ HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n").status == 400


@pytest.mark.parametrize("method", ["FOO", "get", "X-Y", "GETT"])
def test_method_that_nobody_knows_is_not_implemented(wire: Wire, method: str) -> None:
    answer = wire.ask(method, "/api/health/")
    assert (answer.status, b'"unknown_method"' in answer.body) == (501, True)
    assert wire.ask("PROPFIND", "/api/health/").status == 405
    assert wire.send(f"{method}\r\n\r\n".encode()).status == 400


@pytest.mark.parametrize(
    "codings", [["gzip, chunked"], ["gzip", "chunked"], ["x, Chunked"], ["deflate,chunked"]]
)
def test_transfer_coding_that_is_not_decoded_is_refused(wire: Wire, codings: list[str]) -> None:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BUNDLE), BUNDLE)
    lines = [
        "POST /api/events/bundle HTTP/1.1",
        "Host: mev",
        f"X-API-Key: {wire.system.key}",
        "Content-Type: application/json",
    ]
    lines += [f"Transfer-Encoding: {coding}" for coding in codings]
    answer = wire.send("\r\n".join([*lines, "", ""]).encode() + body)
    assert (answer.status, b'"unsupported_transfer_encoding"' in answer.body) == (501, True)


def test_other_version_of_http_is_refused(wire: Wire) -> None:
    answer = wire.send(b"GET /api/health/ HTTP/2.0\r\nHost: mev\r\n\r\n")
    assert (answer.status, b'"unsupported_http_version"' in answer.body) == (505, True)
    assert wire.send(b"GET /api/health/ HTTP/1.2\r\nHost: mev\r\n\r\n").status == 400


H2C = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"]


@pytest.mark.parametrize(
    "wish",
    [
        H2C,
        ["Connection: upgrade", "Upgrade: TLS/1.0"],
        ["Connection: Upgrade", "Upgrade: websocket"],
    ],
    ids=["h2c", "TLS", "websocket"],
)
@pytest.mark.parametrize("pieces", [1, 2, 50])
def test_wish_for_another_protocol_costs_no_body(wire: Wire, wish: list[str], pieces: int) -> None:
    """Java's client requests an upgrade to h2c with every unencrypted request.

    A second request follows on the same connection.
    """
    host, port = wire.system.url.removeprefix("http://").split(":")
    fixed = [
        "POST /api/events/bundle HTTP/1.1",
        "Host: mev",
        f"X-API-Key: {wire.system.key}",
        "Content-Type: application/json",
    ]
    first = "\r\n".join([*fixed, f"Content-Length: {len(BUNDLE)}", *wish, "", ""]).encode() + BUNDLE
    last = (
        "\r\n".join(
            [*fixed, f"Content-Length: {len(BUNDLE)}", "Connection: close", "", ""]
        ).encode()
        + BUNDLE
    )
    data = first + last
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        size = -(-len(data) // pieces)
        for at in range(0, len(data), size):
            connection.sendall(data[at : at + size])
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"202"]
    assert answer.count(b'"accepted":1') == 2


def test_wish_for_another_protocol_is_bounded_like_any_request(wire: Wire) -> None:
    assert (
        wire.send("\r\n".join(["GET /api/health/ HTTP/1.1", *H2C, "", ""]).encode()).status == 400
    )
    lines = "\r\n".join(
        [
            "GET /api/realtime/ws HTTP/1.0",
            "Host: mev",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "",
            "",
        ]
    )
    assert wire.send(lines.encode()).status == 426
    refused = wire.ask(
        "POST", "/api/realtime/ws", "Upgrade: websocket", "Connection: Upgrade, close"
    )
    assert (refused.status, methods(refused.headers["allow"])) == (405, {"GET", "HEAD", "OPTIONS"})


@pytest.mark.parametrize("space", [" ", "\t", " \t  "])
def test_white_space_around_header_values_is_no_part_of_them(wire: Wire, space: str) -> None:
    lines = {
        "Host": "mev",
        "X-API-Key": wire.system.key,
        "Content-Type": "application/json",
        "Content-Length": str(len(BUNDLE)),
        "Content-Encoding": "identity",
        "Connection": "close",
    }
    head = [f"{name}:{space}{value}{space}" for name, value in lines.items()]
    request = ["POST /api/events/bundle HTTP/1.1", *head, "", ""]
    answer = wire.send("\r\n".join(request).encode() + BUNDLE)
    assert answer.status == 202, answer.body


def zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(body)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(BUNDLE, mtime=0)),
        ("GZip", gzip.compress(BUNDLE, mtime=0)),
        ("x-gzip", gzip.compress(BUNDLE, mtime=0)),
        ("identity, gzip", gzip.compress(BUNDLE, mtime=0)),
        ("gzip", gzip.compress(BUNDLE[:9], mtime=0) + gzip.compress(BUNDLE[9:], mtime=0)),
        ("zstd", zstd(BUNDLE)),
        ("ZSTD", zstandard.ZstdCompressor(write_content_size=False).compress(BUNDLE)),
        ("zstd", zstd(BUNDLE[:9]) + zstd(BUNDLE[9:])),
        ("identity", BUNDLE),
    ],
)
def test_coded_bodies_are_decoded(wire: Wire, coding: str, body: bytes) -> None:
    answer = wire.post(body, f"Content-Encoding: {coding}")
    assert answer.status == 202, answer.body
    assert answer.body == b'{"accepted":1,"rejected":0,"errors":[]}'


def test_coded_bodies_are_decoded_for_routes_of_the_framework(wire: Wire) -> None:
    order = b'{"scope": "all", "level": "HALTED", "reason": "coded"}'
    for coding, body in (("gzip", gzip.compress(order, mtime=0)), ("zstd", zstd(order))):
        lines = ("Content-Type: application/json", f"Content-Encoding: {coding}")
        answer = wire.ask("POST", "/api/control/kill-switch", *lines, body=body)
        assert answer.status == 202, answer.body


@pytest.mark.parametrize(
    "lines",
    [
        ["br"],
        ["deflate"],
        ["compress"],
        ["gzip, br"],
        ["gzip", "gzip"],
        ["gzip, zstd"],
        ["gzip;q=1"],
        ["aes128gcm"],
    ],
)
@pytest.mark.parametrize("path", ["/api/events/bundle", "/api/control/kill-switch"])
def test_other_codings_are_named_and_refused(wire: Wire, path: str, lines: list[str]) -> None:
    codings = [f"Content-Encoding: {line}" for line in lines]
    answer = wire.ask("POST", path, "Content-Type: application/json", *codings, body=b"xxxx")
    assert answer.status == 415
    assert b'"unsupported_content_encoding"' in answer.body
    assert b"Content-Encoding" in answer.body
    assert answer.headers["accept-encoding"] == "gzip, zstd"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(BUNDLE, mtime=0)[:-1]),
        ("gzip", gzip.compress(BUNDLE, mtime=0)[:12]),
        ("gzip", gzip.compress(BUNDLE, mtime=0) + b"garbage"),
        ("gzip", BUNDLE),
        ("gzip", zlib.compress(BUNDLE)),
        ("gzip", zstd(BUNDLE)),
        ("zstd", zstd(BUNDLE)[:-1]),
        ("zstd", zstd(BUNDLE) + b"garbage"),
        ("zstd", BUNDLE),
        ("zstd", gzip.compress(BUNDLE, mtime=0)),
    ],
)
def test_body_that_is_not_its_coding_is_refused(wire: Wire, coding: str, body: bytes) -> None:
    answer = wire.post(body, f"Content-Encoding: {coding}")
    assert answer.status == 400
    assert b'"undecodable_body"' in answer.body


def resident_bytes(pid: int) -> int:
    """Return the most memory a process has had."""
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 - no file of a folder
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


def test_bombs_are_refused_without_the_memory_they_want(system: RunningSystem, wire: Wire) -> None:
    bombs = {"gzip": gzip.compress(bytes(BIG), 9), "zstd": zstd(bytes(16 * BIG))}
    wire.post(gzip.compress(b" " * (7 << 20)), "Content-Encoding: gzip")
    before = resident_bytes(system.pid)
    for coding, bomb in bombs.items():
        for path in ("/api/events/bundle", "/api/control/kill-switch"):
            lines = ("Content-Type: application/json", f"Content-Encoding: {coding}")
            answer = wire.ask("POST", path, *lines, body=bomb)
            assert answer.status == 413
            assert b'"body_too_large"' in answer.body
    assert resident_bytes(system.pid) - before < BIG // 2


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([], id="no upgrade"),
        pytest.param(["Connection: keep-alive", "Upgrade: websocket"], id="Connection changed"),
        pytest.param(["Connection: Upgrade, close"], id="Upgrade dropped"),
    ],
)
def test_path_of_the_websocket_asks_for_an_upgrade(
    wire: Wire, method: str, lines: list[str]
) -> None:
    head = [f"{method} /api/realtime/ws HTTP/1.1", "Host: mev", *lines, "Connection: close", "", ""]
    answer = wire.send("\r\n".join(head).encode())
    assert answer.status == 426
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["sec-websocket-version"] == "13"
    if method == "GET":
        assert b'"upgrade_required"' in answer.body
        assert b"proxy" in answer.body


def integers(http: httpx.Client) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each path that is read with an integer in its query, the parameter and all of them."""
    for path, methods in http.get("/openapi.json").raise_for_status().json()["paths"].items():
        given = methods.get("get", {}).get("parameters", [])
        names = [
            one["name"]
            for one in given
            if one["in"] == "query"
            and "integer"
            in {kind.get("type") for kind in one["schema"].get("anyOf", [one["schema"]])}
        ]
        for name in names:
            yield re.sub(r"\{[^}]*\}", "x", path), name, names


def test_integers_in_queries_are_ascii_digits(system: RunningSystem) -> None:
    with system.client() as http:
        found = list(integers(http))
        assert len(found) > 10
        for path, name, names in found:
            for text in ("1_0", "+5", " 5", "5.0", "0x5", "\u0665"):
                asked = dict.fromkeys(names, "5") | {name: text}
                refused = http.get(path, params=asked)
                assert refused.status_code == 422, (path, name, text, refused.text)
                assert name in refused.text
