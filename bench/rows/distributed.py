"""Training on two local Dask workers, against one process on the same rows."""

import hashlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson

from bench.harness import Clock, Row, RowFigures, RowInput, Sides, SkippedError, rate
from bench.rows import predict

_ROWS, _FILES, _TREES, _WORKERS = 200_000, 4, 50, 2


@contextmanager
def _train(setting: RowInput) -> Iterator[Sides]:
    """Both read the Parquet files, make their matrices and grow trees with two threads in all."""
    if find_spec("xgboost") is None or find_spec("distributed") is None:
        raise SkippedError("XGBoost or Dask is not installed: pip install mev[train,dist]")
    from mev.training.cluster import connected  # noqa: PLC0415 - needs the extras
    from mev.training.fit import fit  # noqa: PLC0415 - as above
    from mev.training.rows import matrices, prepare  # noqa: PLC0415 - as above
    from mev.training.spec import parse  # noqa: PLC0415 - as above

    export = _export(setting.scratch / "export")
    report = SimpleNamespace(progress=lambda *_, **__: None, is_cancelled=lambda: False)
    params = {"max_depth": 6, "eta": 0.1, "nthread": _WORKERS, "device": "cpu"}
    losses: dict[str, float] = {}
    with _cluster(setting.scratch) as address:
        spec = parse(
            {
                "target": "wanted",
                "rounds": _TREES,
                "early_stopping_rounds": 0,
                "checkpoint_every": 25,
                "distributed": {"scheduler": address, "workers_min": _WORKERS},
            }
        )
        assert spec.distributed
        training_data = prepare(export, spec)
        with connected(spec.distributed) as cluster:

            def alone() -> None:
                train, validation = matrices(training_data, spec.params.max_bin)
                with tempfile.TemporaryDirectory(dir=setting.scratch) as work:
                    losses["one process"] = fit(
                        spec, params, train, validation, Path(work), "bench", report
                    ).history[-1]

            def together() -> None:
                with tempfile.TemporaryDirectory(dir=setting.scratch) as work:
                    losses["workers"] = cluster.fit(
                        spec, params, training_data, Path(work), "bench", report
                    ).history[-1]

            def notes(_: RowFigures) -> Sequence[str]:
                return [
                    f"log loss of {_TREES} trees: "
                    + ", ".join(f"{name} {value:.5f}" for name, value in losses.items())
                ]

            yield Sides(
                lambda: rate(alone, _TREES, clock=Clock.WALL),
                lambda: rate(together, _TREES, clock=Clock.WALL),
                notes,
            )


def _export(folder: Path) -> Path:
    import pyarrow as pa  # noqa: PLC0415 - an extra
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    folder.mkdir()
    values = predict.table(_ROWS, 3)
    columns: dict[str, Any] = {f"f{number}": values[:, number] for number in range(values.shape[1])}
    whole = pa.table(
        {"slot": np.arange(_ROWS) // 10, **columns, "wanted": predict.target(_ROWS, 3)}
    )
    parts = []
    for number in range(_FILES):
        path = folder / f"part-{number}.parquet"
        pq.write_table(whole.slice(number * _ROWS // _FILES, _ROWS // _FILES), path)
        parts.append({"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    content = {
        "parts": parts,
        "rows": _ROWS,
        "columns": [{"name": name} for name in whole.column_names],
    }
    (folder / "manifest.json").write_bytes(orjson.dumps(content))
    return folder


@contextmanager
def _cluster(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = [
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-dashboard",
        "--no-show",
    ]
    worker = [
        "distributed.cli.dask_worker",
        address,
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
        "--local-directory",
        str(folder),
    ]
    processes = []
    try:
        for command in (scheduler, *[worker] * _WORKERS):
            quiet = subprocess.DEVNULL
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *command], stdout=quiet, stderr=quiet, cwd=folder
                )
            )
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


ROWS = (
    Row(
        name="train_dask",
        unit="trees/s",
        ours=(
            f"{_TREES} trees of {_ROWS:,} rows on {_WORKERS} workers with one thread each, reading"
            " included"
        ),
        baseline=f"one process with {_WORKERS} threads, reading included",
        clock=Clock.WALL,
        open=_train,
    ),
)
