"""The embedded engine with the tables of all events, for a module."""

import contextlib
from collections.abc import Iterator
from contextlib import closing

import pytest

from mev.sink.writer import Writer
from mev.store.clickhouse import Address, ClickHouse


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """Give an engine with empty tables."""
    path = tmp_path_factory.mktemp("engine")
    with (
        contextlib.chdir(path),
        closing(ClickHouse(Address(database="mev", path=path / "data"))) as store,
    ):
        Writer(store, lambda _: None, "cluster").prepare()
        yield store
