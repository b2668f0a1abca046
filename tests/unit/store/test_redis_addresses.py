"""Tests of each way to reach Redis, on real servers: TLS, ACL users, Sentinels and a cluster."""

import asyncio
import contextlib
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from mev.auth.model import ApiKey, Backoff, Role, SessionRecord, User
from mev.auth.store import AccountStore
from mev.limits.rate import Rate, RateLimiter
from mev.store.redis import Redis, RedisAddress, RedisUnavailableError, Script
from tests.services import require
from tests.services.service import Service, free_port
from tests.services.waits import until

pytestmark = pytest.mark.real_redis
TIMEOUT_S = 5.0
DOCS = Path(__file__).parents[3] / "docs/accounts.md"
COUNT = Script("return redis.call('HINCRBY', KEYS[1], 'n', ARGV[1])")
USER, PASSWORD = "mev", "a secret/with:signs"
QUOTED = "a%20secret%2Fwith%3Asigns"
RULES = re.search(r"ACL SETUSER mev on >PASSWORD (.*)", DOCS.read_text())


class Server(Service):
    """A `redis-server` process with arguments of its own."""

    def __init__(
        self, folder: Path, *arguments: str, port: int = 0, sentinel: bool = False
    ) -> None:
        self.port = port or free_port()
        super().__init__(f"redis-{self.port}", folder)
        self._arguments = arguments
        self._sentinel = sentinel

    def command(self) -> list[str]:
        """Return the command line."""
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        if self._sentinel:
            file = self.folder / f"sentinel-{self.port}.conf"
            file.write_text("\n".join(self._arguments))
            return ["redis-server", str(file), "--sentinel", *where]
        return ["redis-server", *where, "--save", "", *self._arguments]

    def is_ready(self) -> bool:
        """Return whether it answers, if only that it wants a password."""
        with redis.Redis(port=self.port, socket_timeout=0.5) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except redis.RedisError:
                return False

    def ask(self, *command: str | int) -> object:
        """Return the answer to a command."""
        with redis.Redis(port=self.port, socket_timeout=2) as client:
            return client.execute_command(*command)


class TlsServer(Server):
    """A server that listens with TLS only, and requires a certificate of its clients."""

    def is_ready(self) -> bool:
        """Return whether it answers."""
        files: dict[str, Any] = {
            f"ssl_{kind}": str(self.folder / name) for kind, name in CLIENT_FILES.items()
        }
        with redis.Redis(port=self.port, ssl=True, socket_timeout=0.5, **files) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


CLIENT_FILES = {"ca_certs": "ca.crt", "certfile": "mev.crt", "keyfile": "mev.key"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Server], Server]]:
    """Return a function that starts a server, which is stopped after the test."""
    if shutil.which("redis-server") is None:
        require("redis-server is not installed (Debian: apt-get install redis-server)")
    with ExitStack() as stack:
        yield stack.enter_context


@contextlib.asynccontextmanager
async def client(address: RedisAddress) -> AsyncIterator[Redis]:
    found = Redis(address, timeout_s=TIMEOUT_S)
    try:
        yield found
    finally:
        await found.close()


async def check_works(found: Redis) -> None:
    await found.ping()
    assert re.match(r"Redis \d", await found.version())
    name = "mev:{auth}:count"
    before = int((await found.read_hash(name)).get("n", 0))
    assert await found.run(COUNT, [name], 2) == before + 2
    assert await found.read_hash(name) == {"n": str(before + 2)}
    assert await found.delete(name) == 1


async def test_acl_user_needs_the_documented_rules_only(
    tmp_path: Path, start: Callable[[Server], Server]
) -> None:
    server = start(Server(tmp_path))
    assert RULES is not None
    server.ask("ACL", "SETUSER", USER, "on", f">{PASSWORD}", *RULES[1].split())
    server.ask("ACL", "SETUSER", "default", "off")
    address = RedisAddress(url=f"redis://{USER}:{QUOTED}@127.0.0.1:{server.port}/0")
    async with client(address) as found:
        await check_works(found)
        await _use_every_script(AccountStore(found))
        await RateLimiter(found, Rate(10, 10)).take("somebody")
        with pytest.raises(RedisUnavailableError, match="does not permit HGETALL"):
            await found.read_hash("other:key")
    wrong = RedisAddress(url=f"redis://{USER}:wrong@127.0.0.1:{server.port}/0")
    async with client(wrong) as found:
        with pytest.raises(RedisUnavailableError, match="username-password pair"):
            await found.ping()


async def _use_every_script(store: AccountStore) -> None:
    user = User(name="ann", role=Role.VIEWER, password="-", created_s=1, disabled=False, epoch=0)
    assert await store.create_user(user)
    assert await store.set_role("ann", Role.ADMIN)
    assert await store.set_disabled("ann", disabled=False)
    session = SessionRecord(
        id="s", user="ann", epoch=1, generation=0, authenticated_s=1, expires_s=1e10
    )
    await store.open_session(session)
    assert await store.session("s")
    assert await store.rotate("s", 0) == 1
    await store.end_session("s")
    key = ApiKey(
        id="k",
        name="k",
        owner="ann",
        digest="-",
        scopes=frozenset(),
        created_s=1,
        expires_s=1e10,
        used_s=None,
        revoked_s=None,
    )
    assert await store.create_key(key)
    assert await store.use_key("k", 2)
    assert await store.revoke_key("k", 3)
    backoff = Backoff(free=1, base_s=1, most_s=1)
    assert await store.attempt("ann", backoff) == 0
    await store.forgive("ann")
    assert (await store.users(0, 10))[0]


async def test_tls_with_a_certificate_of_the_client(
    tmp_path: Path, start: Callable[[Server], Server]
) -> None:
    _make_certificates(tmp_path)
    port = free_port()
    start(
        TlsServer(
            tmp_path,
            *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "yes"),
            *("--tls-ca-cert-file", str(tmp_path / "ca.crt")),
            *("--tls-cert-file", str(tmp_path / "server.crt")),
            *("--tls-key-file", str(tmp_path / "server.key")),
            port=port,
        )
    )
    url = f"rediss://localhost:{port}/0"
    ca, certificate, key = (tmp_path / name for name in CLIENT_FILES.values())
    known = RedisAddress(url=url, tls_ca_file=ca, tls_cert_file=certificate, tls_key_file=key)
    async with client(known) as found:
        await check_works(found)
    async with client(RedisAddress(url=url)) as found:
        with pytest.raises(RedisUnavailableError, match="certificate verify failed"):
            await found.ping()
    async with client(RedisAddress(url=url, tls_ca_file=ca)) as found:
        with pytest.raises(RedisUnavailableError):
            await found.ping()


@pytest.mark.slow
async def test_sentinels_name_the_master_also_after_a_failover(
    tmp_path: Path, start: Callable[[Server], Server]
) -> None:
    password = ("--requirepass", "pw", "--masterauth", "pw")
    master = start(Server(tmp_path, *password))
    replica = start(Server(tmp_path, *password, "--replicaof", f"127.0.0.1 {master.port}"))
    monitor = [
        f"sentinel monitor desk 127.0.0.1 {master.port} 1",
        "sentinel auth-pass desk pw",
        "sentinel down-after-milliseconds desk 500",
        "sentinel failover-timeout desk 3000",
    ]
    sentinel = start(Server(tmp_path, *monitor, sentinel=True))

    def replicas() -> bool:
        return bool(sentinel.ask("SENTINEL", "REPLICAS", "desk"))

    until(replicas, what="the Sentinel does not know the replica")
    address = RedisAddress(
        url=f"redis://:pw@127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/0",
        mode="sentinel",
        sentinel_service="desk",
    )
    async with client(address) as found:
        await check_works(found)
        master.kill()

        async def works() -> bool:
            try:
                await check_works(found)
            except RedisUnavailableError:
                await asyncio.sleep(0.2)
                return False
            return True

        for _ in range(100):
            if await works():
                break
        with redis.Redis(port=replica.port, password="pw") as direct:
            assert direct.role()[0] == b"master"
        await check_works(found)


async def test_cluster_with_a_key_on_any_node(
    tmp_path: Path, start: Callable[[Server], Server]
) -> None:
    nodes = []
    bus_ports = [free_port() for _ in range(3)]
    for number, bus_port in enumerate(bus_ports):
        (tmp_path / str(number)).mkdir()
        nodes.append(
            start(
                Server(
                    tmp_path / str(number),
                    *("--cluster-enabled", "yes", "--cluster-node-timeout", "2000"),
                    *("--cluster-port", str(bus_port)),
                )
            )
        )
    for number, node in enumerate(nodes):
        first, last = (16384 * number // 3, 16384 * (number + 1) // 3 - 1)
        node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for node in nodes[1:]:
        node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, bus_ports[0])

    def is_up(node: Server) -> bool:
        state = node.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in bytes(state)  # type: ignore[call-overload]

    for node in nodes:
        until(lambda: is_up(node), what="the cluster is not complete")
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{nodes[1].port}"
    async with client(RedisAddress(url=f"redis://{hosts}", mode="cluster")) as found:
        await check_works(found)
        for number in range(20):
            assert await found.run(COUNT, [f"mev:rate:{number}"], 1) == 1
        assert await found.ranked("mev:{auth}:users", 0, 10) == []
    assert all(int(str(node.ask("DBSIZE"))) > 0 for node in nodes)


def _make_certificates(folder: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=Test CA")
    for name in ("server", "mev"):
        openssl(
            *("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt"),
            *("-CA", "ca.crt", "-CAkey", "ca.key", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=DNS:localhost"),
        )
