"""One simulated market for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.unit.training.exports import examples, write_export


@pytest.fixture(scope="package", autouse=True)
def _one_processor() -> Iterator[None]:
    """Train on one thread: on a busy machine several spend their time waiting for each other."""
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(whole)[os.getpid() % len(whole)]})
    yield
    os.sched_setaffinity(0, whole)


@pytest.fixture(scope="session")
def table() -> pa.Table:
    return examples(8000)


@pytest.fixture(scope="session")
def export(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("exports") / "export", table)
