"""A Redis server of the tests' own: append-only file on, a free port, a temporary folder."""

import shutil
from pathlib import Path

import redis

from tests.services import require
from tests.services.service import Service, free_port


class RealRedis(Service):
    """Run `redis-server`; every write that it acknowledged outlives a kill."""

    def __init__(self, folder: Path) -> None:
        super().__init__("redis", folder)
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        """Give the command line; there is no configuration file."""
        network = ["--bind", "127.0.0.1", "--port", str(self.port)]
        storage = ["--dir", str(self.folder), "--appendonly", "yes", "--save", ""]
        return ["redis-server", *network, *storage, "--daemonize", "no"]

    def is_ready(self) -> bool:
        """Tell whether it answers PING, which it does not while it loads its data."""
        with redis.Redis.from_url(self.url, socket_timeout=0.5) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def real_redis(folder: Path) -> RealRedis:
    """Describe a server in `folder`, not yet started, or skip."""
    if shutil.which("redis-server") is None:
        require("redis-server is not installed (Debian: apt-get install redis-server)")
    return RealRedis(folder)
