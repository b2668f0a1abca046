"""One simulated market for all tests."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.unit.training.exports import examples, write_export


@pytest.fixture(scope="session")
def table() -> pa.Table:
    return examples(8000)


@pytest.fixture(scope="session")
def export(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("exports") / "export", table)
