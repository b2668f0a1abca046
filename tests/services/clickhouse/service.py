"""Child process that runs the ClickHouse stand-in on its own port and folder."""

import importlib.util
import sys
from pathlib import Path

import httpx

from tests.services import require
from tests.services.service import Service, free_port

ROOT = Path(__file__).parents[3]
USER = "tester"
PASSWORD = "a 'quoted' påssword:"


class ClickHouseHttp(Service):
    """Run the engine behind HTTP; what it stored outlives a kill."""

    def __init__(self, folder: Path) -> None:
        super().__init__("clickhouse", folder)
        self.host = "127.0.0.1"
        self.port = free_port()
        self.user = USER
        self.password = PASSWORD
        self.environment = {
            "CLICKHOUSE_HOST": self.host,
            "CLICKHOUSE_PORT": str(self.port),
            "CLICKHOUSE_USER": self.user,
            "CLICKHOUSE_PASSWORD": self.password,
        }

    def command(self) -> list[str]:
        """Return the command line; the engine caches in the working directory."""
        server = [sys.executable, "-m", "tests.services.clickhouse.server"]
        return [
            "env",
            f"PYTHONPATH={ROOT}",
            *server,
            str(self.port),
            str(self.folder / "data"),
            self.user,
            self.password,
        ]

    def is_ready(self) -> bool:
        """Tell whether it answers a ping, which it does once the engine is open."""
        try:
            return (
                httpx.get(f"http://{self.host}:{self.port}/ping", timeout=0.5, trust_env=False).text
                == "Ok.\n"
            )
        except httpx.HTTPError:
            return False


def clickhouse_http(folder: Path) -> ClickHouseHttp:
    """Describe the service in `folder`, not yet started, or skip."""
    for package in ("chdb", "lz4", "zstandard"):
        if importlib.util.find_spec(package) is None:
            require(f"{package} is not installed (pip install -e '.[embedded]' lz4)")
    return ClickHouseHttp(folder)
