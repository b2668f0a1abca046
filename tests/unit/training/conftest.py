"""One simulated market for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from mev.training import plots
from tests.unit.training.exports import examples, write_export


@pytest.fixture(scope="package", autouse=True)
def _one_processor() -> Iterator[None]:
    """Train on one thread: on a busy machine several spend their time waiting for each other."""
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(whole)[os.getpid() % len(whole)]})
    yield
    os.sched_setaffinity(0, whole)


@pytest.fixture
def drawn() -> None:
    """Have the plots of this test drawn."""


@pytest.fixture(autouse=True)
def _blank_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plots blank: drawing takes most of a short training."""

    def save(path: Path, _draw: object) -> None:
        path.write_bytes(b"")
        path.with_suffix(".svg").write_bytes(b"")

    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "_save", save)


@pytest.fixture(scope="session")
def table() -> pa.Table:
    return examples(8000)


@pytest.fixture(scope="session")
def export(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("exports") / "export", table)
