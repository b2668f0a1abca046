"""Fixtures of the capture's tests."""

import threading
from collections.abc import Iterator

import pytest

from tests.unit.capture.node import Node


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    thread = threading.Thread(target=node.server.serve_forever, args=(0.01,))
    thread.start()
    yield node
    node.server.shutdown()
    thread.join()
    node.server.server_close()
