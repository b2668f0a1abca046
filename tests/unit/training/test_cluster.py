"""Tests of training on a real Dask cluster: the same model, also when a worker is killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mev.control.keys import open_keys
from mev.core import confine
from mev.jobs.boot import running_jobs
from mev.jobs.errors import CancelledJobError
from mev.jobs.model import JobState
from mev.registry.registry import Registry
from mev.training import cluster as subject
from mev.training import data, shares
from mev.training.errors import (
    DistributedUnavailableError,
    InvalidTrainingError,
    SchedulerUnavailableError,
    TooFewWorkersError,
    UnequalWorkersError,
    WorkerHasSecretsError,
    WorkersLostError,
)
from mev.training.fit import CHECKPOINT
from mev.training.job import train_kind
from mev.training.rows import prepare
from mev.training.run import run
from mev.training.spec import parse
from tests.unit.training.exports import Watcher, write_export
from tests.unit.training.workers import Cluster, cluster

pytestmark = pytest.mark.slow  # schedulers and workers take long to start
SPEC: dict[str, Any] = {
    "rounds": 30,
    "params": {"max_depth": 3, "eta": 0.2},
    "device": "cpu",
    "early_stopping_rounds": 0,
    "checkpoint_every": 15,
}


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("dask"), workers=2) as found:
        yield found


@pytest.fixture(scope="module")
def export(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("cluster") / "export", table.slice(0, 4000))


def asked(dask: Cluster, **fields: object) -> dict[str, Any]:
    return {
        **SPEC,
        "distributed": {"scheduler": dask.address, "wait_s": 40, "deadline_s": 20, **fields},
    }


def test_it_learns_what_one_machine_learns(dask: Cluster, export: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one = run(SPEC, export, tmp_path / "one", Watcher())
    watcher = Watcher()
    result = run(asked(dask, workers_min=2), export, tmp_path, watcher)
    assert result.figures["auc"] == pytest.approx(one.figures["auc"], abs=0.02)
    assert result.figures["log_loss"] == pytest.approx(one.figures["log_loss"], abs=0.02)
    assert result.figures["base_rate"] == one.figures["base_rate"]
    assert result.lineage["distributed"] == {"workers": 2, "losses": 0}
    assert result.booster.num_boosted_rounds() == result.rounds == 30
    assert [told[0] for told in watcher.told if "logloss" in told[3]] == [15, 30]
    assert not (tmp_path / CHECKPOINT).exists()


def test_every_row_is_read_once_in_whatever_order_it_is(table: pa.Table, tmp_path: Path) -> None:
    shuffled = table.take(np.random.default_rng(1).permutation(4000))
    training_data = prepare(write_export(tmp_path / "export", shuffled), parse(SPEC))
    names = (*training_data.features, "landed")
    for keep, side in zip(
        (training_data.cut.train, training_data.cut.validation),
        shares.shares(training_data),
        strict=True,
    ):
        pieces = [piece for share in side for piece in shares.divided(share, 700)]
        read = [shares.read(piece) for piece in pieces]
        assert [len(rows) for rows in read] == [piece.rows for piece in pieces]
        assert max(map(len, read)) <= 700
        np.testing.assert_array_equal(
            np.concatenate(read), data.numbers(shuffled.filter(pa.array(keep)), names)
        )


def test_it_stops_early_and_goes_on_from_its_checkpoint(
    dask: Cluster, export: Path, tmp_path: Path
) -> None:
    spec = {
        **asked(dask),
        "rounds": 300,
        "params": {"eta": 0.5},
        "early_stopping_rounds": 3,
        "checkpoint_every": 3,
    }
    with pytest.raises(CancelledJobError):
        run(spec, export, tmp_path, Watcher(cancel_after=3))
    assert (tmp_path / CHECKPOINT).exists()
    result = run(spec, export, tmp_path, Watcher())
    assert result.resumed_from == 3
    assert result.rounds == result.best_round + 3 < 300
    assert result.booster.num_boosted_rounds() == result.best_round


@contextmanager
def third_worker(dask: Cluster) -> Iterator["subprocess.Popen[bytes]"]:
    """Give a worker that has done a task."""
    worker = dask.add_worker()
    try:
        spec = parse(asked(dask, workers_min=3)).distributed
        assert spec
        with subject.connected(spec):
            yield worker
    finally:
        worker.kill()
        worker.wait()


class Kills(Watcher):
    """Kills a worker while trees are grown from the first checkpoint on."""

    def __init__(self, worker: "subprocess.Popen[bytes]", sign: signal.Signals) -> None:
        super().__init__()
        self._worker, self._sign = worker, sign
        self._looks = 0

    def is_cancelled(self) -> bool:
        if any("logloss" in told[3] for told in self.told):
            self._looks += 1
            if self._looks == 3:  # the first was before the rounds began
                os.kill(self._worker.pid, self._sign)
        return False


def test_a_worker_that_is_killed_costs_the_rounds_since_the_checkpoint(
    dask: Cluster,
    export: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "_LOOK_S", 0.02)
    with third_worker(dask) as worker:
        killer = Kills(worker, signal.SIGKILL)
        result = run(
            {**asked(dask, deadline_s=90), "rounds": 120, "checkpoint_every": 60},
            export,
            tmp_path,
            killer,
        )
    assert result.lineage["distributed"] == {"workers": 3, "losses": 1}
    assert [told[0] for told in killer.told if "logloss" in told[3]] == [60, 120]
    assert "rounds 61 to 120 are begun again" in caplog.text
    assert result.booster.num_boosted_rounds() == 120
    assert result.figures["auc"] > 0.7


def test_a_worker_that_hangs_is_left_out_after_the_deadline(
    dask: Cluster, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with third_worker(dask) as worker:
        monkeypatch.setattr(subject, "_ANSWER_S", 1.0)
        monkeypatch.setattr(subject, "_LOOK_S", 0.02)
        stopper = Kills(worker, signal.SIGSTOP)
        spec = {**asked(dask, deadline_s=4, losses_max=9), "rounds": 40, "checkpoint_every": 20}
        result = run(spec, export, tmp_path, stopper)
    assert result.lineage["distributed"]["losses"] >= 1
    assert result.booster.num_boosted_rounds() == 40


def test_after_too_many_losses_it_fails_and_keeps_what_it_has(
    dask: Cluster, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_LOOK_S", 0.02)
    spec = {**asked(dask, losses_max=0), "rounds": 120, "checkpoint_every": 60}
    with third_worker(dask) as worker, pytest.raises(WorkersLostError, match="60 rounds were done"):
        run(spec, export, tmp_path, Kills(worker, signal.SIGKILL))
    assert run(spec, export, tmp_path, Watcher()).resumed_from == 60


def test_what_workers_must_have_is_named(dask: Cluster, export: Path, tmp_path: Path) -> None:
    spec = parse(asked(dask))
    assert spec.distributed
    here = tmp_path / "export"
    here.mkdir()
    for path in export.iterdir():
        (here / path.name).write_bytes(path.read_bytes())
    training_data = prepare(here, spec)
    here.rename(tmp_path / "elsewhere")
    with (
        pytest.raises(UnequalWorkersError, match="has nothing as export"),
        subject.connected(spec.distributed) as found,
    ):
        found.fit(spec, {}, training_data, tmp_path, "key", Watcher())


def test_too_few_workers(dask: Cluster, tmp_path: Path) -> None:
    with pytest.raises(TooFewWorkersError, match="and 50 are wanted"):
        run(asked(dask, workers_min=50, wait_s=0.1), tmp_path / "nowhere", tmp_path, Watcher())


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tls://127.0.0.1:1"])
def test_a_scheduler_that_is_away_is_named_before_anything_else(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_CONNECT_S", 0.5)
    with pytest.raises(SchedulerUnavailableError, match="does not answer"):
        run(
            {**SPEC, "distributed": {"scheduler": address}},
            tmp_path / "nowhere",
            tmp_path,
            Watcher(),
        )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"distributed": {"scheduler": "http://127.0.0.1:1"}}, "distributed.scheduler"),
        ({"distributed": {"scheduler": "tcp://a:1", "workers_min": 0}}, "workers_min"),
        ({"objective": "ranking"}, "ranking is trained on one machine"),
        ({"search": {"trials": 3}}, "exclude each other"),
        ({"device": "cuda"}, "processors of the workers"),
    ],
)
def test_requests_that_make_no_sense_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidTrainingError, match=reason):
        parse({**SPEC, "distributed": {"scheduler": "tcp://a:1"}, **fields})


def test_without_dask_it_says_what_to_install(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mev.training.cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DistributedUnavailableError, match=r"-e .\.\[dist\]"):
        run(
            {**SPEC, "distributed": {"scheduler": "tcp://127.0.0.1:1"}}, export, tmp_path, Watcher()
        )


def test_a_scheduler_that_dies_in_the_middle_is_named(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_ANSWER_S", 2.0)
    monkeypatch.setattr(subject, "_LOOK_S", 0.02)
    with cluster(tmp_path, workers=1) as dask:
        spec = {**asked(dask, losses_max=1), "rounds": 120, "checkpoint_every": 60}
        with pytest.raises(SchedulerUnavailableError, match="does not answer"):
            run(spec, export, tmp_path, Kills(dask.scheduler, signal.SIGKILL))


def test_workers_leave_simulated_rows_out_where_there_are_real_ones(
    table: pa.Table, tmp_path: Path
) -> None:
    simulated = pa.array(np.arange(4000) % 3 == 0)
    mixed = table.slice(0, 4000).set_column(
        table.column_names.index("simulated"), "simulated", simulated
    )
    training_data = prepare(write_export(tmp_path / "export", mixed), parse(SPEC))
    names = (*training_data.features, "landed")
    for keep, side in zip(
        (training_data.cut.train, training_data.cut.validation),
        shares.shares(training_data),
        strict=True,
    ):
        read = [shares.read(piece) for share in side for piece in shares.divided(share, 700)]
        np.testing.assert_array_equal(
            np.concatenate(read), data.numbers(mixed.filter(pa.array(keep)), names)
        )


def certificate(folder: Path) -> list[Path]:
    """Create a self-signed certificate; return the files of authority, certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dask")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(
            name,
            name,
            key.public_key(),
            x509.random_serial_number(),
            now - timedelta(1),
            now + timedelta(1),
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = [folder / "cert.pem", folder / "cert.pem", folder / "key.pem"]
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[2].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


async def test_training_speaks_tls_to_the_scheduler_with_the_files_of_the_settings(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificate(tmp_path)
    (tmp_path / "dask").mkdir()
    with cluster(tmp_path / "dask", workers=1, tls=files) as dask:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        monkeypatch.setenv(
            "MASTER_API_KEY", "a secret of the system"
        )  # the workers were started before, without it
        monkeypatch.setenv("TRAIN_SCHEDULERS", dask.address)
        for variable, file in zip(("CA", "CERT", "KEY"), files, strict=True):
            monkeypatch.setenv(f"TRAIN_TLS_{variable}_FILE", str(file))
        keys = open_keys(tmp_path / "control", seed_hex=None, key_id=None, now_ns=1)
        (tmp_path / "state.json").write_text(json.dumps({"state": JobState.SUCCEEDED}))
        spec = {
            "export_id": "1",
            "export_folder": str(export),
            "export_state": str(tmp_path / "state.json"),
            "compiled": False,
        }
        kind = train_kind(Registry(tmp_path / "models", keys.trust), keys)
        async with running_jobs(
            tmp_path / "jobs", [kind], confinement=confine.strongest()
        ) as runner:
            training = parse(asked(dask)).model_dump(mode="json")
            job = await runner.wait(
                (await runner.submit("train", spec | {"training": training}, owner="user:ada")).id
            )
            assert job.state is JobState.SUCCEEDED, (job.error, runner.log(job.id).read_text())
            assert list((tmp_path / "jobs" / job.id).rglob("*.pem")) == []
    (entry,) = Registry(tmp_path / "models", keys.trust).list().entries
    assert entry.manifest.lineage["distributed"] == {"workers": 1, "losses": 0}


def test_worker_with_secrets_in_its_environment_is_named(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_API_KEY", "a secret of the system")
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", "another")
    with (
        cluster(tmp_path, workers=1) as dask,
        pytest.raises(WorkerHasSecretsError, match="CLICKHOUSE_PASSWORD, MASTER_API_KEY") as caught,
    ):
        run(asked(dask), export, tmp_path, Watcher())
    assert "env -i" in caught.value.detail
