"""Connections and open files."""

import pytest

from mev.server.security import connection_shares
from mev.settings import load

OTHER_FILES = 400
"""What the process opens beside connections; about 150 when idle."""


@pytest.mark.parametrize("open_files", [1024, 4096, 20_000, 65_536])
@pytest.mark.parametrize(
    ("http", "websocket"), [(10_000, 10_000), (100, 10_000), (10_000, 100), (10_000, 65_536)]
)
def test_connections_leave_files_for_the_rest(open_files: int, http: int, websocket: int) -> None:
    settings = load(http_max_connections=http, ws_max_connections=websocket)
    shares = connection_shares(settings, open_files)
    assert shares.http + shares.websocket <= open_files - OTHER_FILES
    assert min(http, 100) <= shares.http <= http
    assert min(websocket, 100) <= shares.websocket <= websocket


def test_where_files_are_enough_the_settings_count() -> None:
    shares = connection_shares(load(http_max_connections=5000, ws_max_connections=6000), 65_536)
    assert (shares.http, shares.websocket) == (5000, 6000)
