"""Process that runs one job and prints its outcome.

Run as ``python -m tests.unit.training.attacked FOLDER CONFINEMENT [EXPORT]``. `CONFINEMENT` is
``strongest`` or JSON with the fields of one. Without an export the job is hostile and tries the
attacks of :mod:`attempts`; with one it is a training.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mev.control.keys import open_keys
from mev.core import confine, kernel
from mev.core.confine import Confinement
from mev.jobs.boot import running_jobs
from mev.jobs.context import Context
from mev.jobs.model import Given, JobKind, JobState
from mev.registry.registry import Registry
from mev.training.job import train_kind
from mev.training.spec import parse
from tests.unit.training import attempts


@contextmanager
def target(folder: Path) -> Iterator[tuple[JobKind, dict[str, Any]]]:
    """Give a job that attacks, and what it is told."""
    data, export, other = (
        folder / "data",
        folder / "export",
        folder / "data" / "jobs" / "other" / "state.json",
    )
    export.mkdir(mode=0o700)
    (export / "part").write_bytes(b"rows")
    (export / "part").chmod(0o600)
    other.parent.mkdir(parents=True)
    other.write_bytes(b"{}")

    def prepare(context: Context) -> Given:
        return Given(spec=context.spec, folders={"export": export})

    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as server:
        local.bind(str(data / "socket"))
        local.listen()
        spec = {
            "data": str(data),
            "other_job": str(other),
            "elsewhere": str(folder / "elsewhere"),
            "port": server.getsockname()[1],
        }
        yield JobKind(name="job", run=attempts.everything, prepare=prepare), spec


@contextmanager
def training(folder: Path, export: Path) -> Iterator[tuple[JobKind, dict[str, Any]]]:
    """Give a training on an export that is there."""
    keys = open_keys(folder / "data" / "control", seed_hex=None, key_id=None, now_ns=1)
    state = folder / "state.json"
    state.write_text(json.dumps({"state": JobState.SUCCEEDED}))
    asked = parse(
        {"rounds": 5, "params": {"max_depth": 3}, "device": "cpu", "early_stopping_rounds": 0}
    )
    spec = {
        "export_id": "1",
        "export_folder": str(export),
        "export_state": str(state),
        "compiled": True,
    }
    yield (
        train_kind(Registry(folder / "models", keys.trust), keys),
        spec | {"training": asked.model_dump(mode="json")},
    )


async def main(folder: Path, confinement: Confinement, export: Path | None) -> None:
    """Run the job, and print its state, its error and its findings."""
    kernel.forbid_tracing()
    data = folder / "data"
    open_keys(data / "control", seed_hex=None, key_id=None, now_ns=1)
    os.chdir(data)
    with training(folder, export) if export else target(folder) as (kind, spec):
        async with running_jobs(data / "jobs", [kind], confinement=confinement) as runner:
            job = await runner.wait((await runner.submit(kind.name, spec, owner="user:eve")).id)
            found = runner.output(job.id) / "found.json"
            said = {
                "state": job.state,
                "error": job.error,
                "log": runner.log(job.id).read_text(),
                "confinement": str(confinement),
            }
            sys.stdout.write(
                json.dumps(said | (json.loads(found.read_bytes()) if found.exists() else {}))
            )


if __name__ == "__main__":
    given = sys.argv[2]
    chosen = confine.strongest() if given == "strongest" else Confinement(**json.loads(given))
    asyncio.run(main(Path(sys.argv[1]), chosen, Path(sys.argv[3]) if len(sys.argv) > 3 else None))
