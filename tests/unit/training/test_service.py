"""Tests of trainings over HTTP and as jobs: quotas, audit order, and repeated checks."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from mev.auth.dependencies import PRINCIPAL
from mev.auth.model import MASTER, CredentialKind, Permission, Principal
from mev.control.keys import open_keys
from mev.core.asgi import Scope
from mev.core.errors import UnavailableError
from mev.datasets.routes import router as datasets_router
from mev.datasets.service import ExportQuota, Exports
from mev.jobs.boot import running_jobs
from mev.jobs.context import PROGRESS, Context
from mev.jobs.model import JobKind, JobState
from mev.jobs.routes import router as jobs_router
from mev.jobs.runner import Runner
from mev.registry.registry import Registry
from mev.server.app import create_app
from mev.server.gate import Gate
from mev.server.security import build
from mev.settings import load
from mev.store.clickhouse import Address, ClickHouse
from mev.store.folder import DataFolder
from mev.store.redis import Redis
from mev.training.errors import (
    ExportFailedError,
    SchedulerNotAllowedError,
    SchedulerNotEncryptedError,
)
from mev.training.job import prepare, train_kind
from mev.training.routes import router
from mev.training.service import TrainingQuota, Trainings
from mev.training.spec import parse

TRAIN, EXPORT = "/api/training/train", "/api/datasets/export"
MASTER_KEY = "the-master-key-of-the-tests"
ADA = frozenset(
    {
        Permission.DATASETS_READ,
        Permission.DATASETS_EXPORT,
        Permission.MODELS_TRAIN,
        Permission.MODELS_READ,
    }
)
EXAMPLES = {"dataset": "training_examples"}
QUICK: dict[str, Any] = {
    "rounds": 5,
    "params": {"max_depth": 3},
    "device": "cpu",
    "early_stopping_rounds": 0,
}


def person(name: str | None) -> Principal:
    return Principal(
        id=f"user:{name}", name=str(name), kind=CredentialKind.USER, permissions=ADA, user=name
    )


def key(number: int, user: str | None, permissions: frozenset[Permission] = ADA) -> Principal:
    return Principal(
        id=f"key:{number}",
        name=f"{user}/{number}",
        kind=CredentialKind.KEY,
        permissions=permissions,
        user=user,
    )


class Trail:
    """Recorder of the audit trail, which can be full."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, str, str]] = []
        self.full = False

    async def __call__(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002
        outcome: str,
        details: Mapping[str, object],
    ) -> None:
        if self.full:
            raise UnavailableError("the disk of the audit trail is full")
        self.facts.append((actor, action, object))


class Api:
    """The routes of jobs, exports and trainings, whose work waits until it is cancelled."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        runner: Runner,
        trail: Trail,
        gate: Gate,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.http = http
        self.runner = runner
        self.trail = trail
        self._who = MASTER
        admit = gate.admit

        async def admit_who(scope: Scope, *arguments: Any, **options: Any) -> Any:
            receive = await admit(scope, *arguments, **options)
            scope[PRINCIPAL] = self._who
            return receive

        monkeypatch.setattr(gate, "admit", admit_who)

    async def ask(self, who: Principal, verb: str, path: str, body: Any = None) -> httpx.Response:
        """Ask as `who`."""
        self._who = who
        return await self.http.request(verb, path, json=body)

    async def started(self, who: Principal, path: str, body: Any) -> str:
        """Start a job, and return it."""
        answer = await self.ask(who, "POST", path, body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


def quick(context: Context) -> None:
    context.progress(1, 1, bytes=100)


def patient(context: Context) -> None:
    while True:
        context.check()
        time.sleep(0.01)


@pytest.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    keys = open_keys(tmp_path / "control", seed_hex=None, key_id=None, now_ns=1)
    kind = replace(
        train_kind(Registry(tmp_path / "models", keys.trust), keys), run=patient, in_thread=True
    )
    kinds = [JobKind(name="export", run=quick, in_thread=True), kind]
    trail, redis, folder = (
        Trail(),
        Redis(f"unix://{tmp_path}/none", timeout_s=1),
        DataFolder(tmp_path),
    )
    security = build(
        load(mev_data_dir=tmp_path, master_api_key=MASTER_KEY), folder, redis, lambda: 0
    )
    security.passwords.close()
    store = ClickHouse(Address(database="mev", host="127.0.0.1", port=1))  # never asked here
    async with running_jobs(tmp_path / "jobs", kinds) as runner:
        exports = Exports(runner, store, ExportQuota(jobs=100, size_bytes=150, part_rows_min=1000))
        trainings = Trainings(runner, exports, TrainingQuota(jobs=2, search_s=100))
        routers = [
            router(trainings, runner, audit=trail),
            datasets_router(exports, runner, audit=trail),
            jobs_router(runner, audit=trail),
        ]
        app = create_app(routers, [], security.gate)
        headers = {"X-API-Key": MASTER_KEY}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://mev.example", headers=headers
        ) as http:
            yield Api(http, runner, trail, security.gate, monkeypatch)
    await redis.close()
    store.close()


async def test_a_person_has_as_many_trainings_as_allowed_however_many_keys(api: Api) -> None:
    export_id = await api.started(person("ada"), EXPORT, {"type": "training_examples"})
    await api.runner.wait(export_id)
    body = {"dataset": export_id}
    first = await api.started(person("ada"), TRAIN, body)
    await api.started(key(1, "ada"), TRAIN, body)
    for who in (person("ada"), key(1, "ada"), key(2, "ada")):
        refused = await api.ask(who, "POST", TRAIN, body)
        assert (refused.status_code, refused.json()["code"], "retry-after" in refused.headers) == (
            429,
            "training_quota",
            True,
        )
        assert "TRAIN_JOBS_PER_PRINCIPAL" in refused.json()["detail"]
    # Before it is refused nothing is exported for it.
    assert (await api.ask(key(2, "ada"), "POST", TRAIN, EXAMPLES)).status_code == 429
    assert [job.id for job in api.runner.jobs(kind="export")] == [export_id]
    await api.started(person("bob"), TRAIN, body)
    # Keys that the master key made are its own.
    for who in (key(3, None), key(4, None)):
        await api.started(who, TRAIN, body)
    assert (await api.ask(replace(MASTER, permissions=ADA), "POST", TRAIN, body)).status_code == 429
    assert (await api.ask(person("ada"), "DELETE", f"/api/jobs/{first}")).status_code == 202
    await api.runner.wait(first)
    await api.started(key(2, "ada"), TRAIN, body)


async def test_who_started_it_and_the_person_behind_it_end_a_job(api: Api) -> None:
    job_id = await api.started(key(1, "ada"), TRAIN, EXAMPLES)
    for who in (
        key(2, "ada", frozenset({Permission.DATASETS_READ})),
        key(2, "ada"),
        person("bob"),
        replace(MASTER, permissions=ADA),
    ):
        refused = await api.ask(who, "DELETE", f"/api/jobs/{job_id}")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), who
    assert (await api.ask(person("ada"), "DELETE", f"/api/jobs/{job_id}")).status_code == 202
    assert (await api.runner.wait(job_id)).state is JobState.CANCELLED
    other = await api.started(key(1, "ada"), TRAIN, EXAMPLES)
    assert (await api.ask(key(1, "ada"), "DELETE", f"/api/jobs/{other}")).status_code == 202


async def test_exports_count_by_the_person_and_deleting_one_makes_room(api: Api) -> None:
    body = {"type": "bundle"}
    ids = [await api.started(who, EXPORT, body) for who in (person("ada"), key(1, "ada"))]
    for export_id in ids:
        await api.runner.wait(export_id)
    full = await api.ask(key(2, "ada"), "POST", EXPORT, body)
    assert (full.status_code, full.json()["code"], "delete some" in full.json()["detail"]) == (
        429,
        "export_quota",
        True,
    )
    assert (await api.ask(key(2, "ada"), "DELETE", f"{EXPORT}/{ids[1]}")).status_code == 403
    assert (await api.ask(person("ada"), "DELETE", f"{EXPORT}/{ids[1]}")).status_code == 204
    assert api.trail.facts[-1] == ("user:ada", "datasets.delete", ids[1])
    await api.started(key(2, "ada"), EXPORT, body)


async def test_nothing_starts_that_is_not_written_down(api: Api) -> None:
    api.trail.full = True
    for path, body in ((TRAIN, EXAMPLES), (EXPORT, {"type": "bundle"})):
        refused = await api.ask(person("ada"), "POST", path, body)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert api.runner.jobs() == []
    api.trail.full = False
    job_id = await api.started(person("ada"), TRAIN, EXAMPLES)
    (export,) = api.runner.jobs(kind="export")
    assert api.trail.facts == [
        ("user:ada", "datasets.export", export.id),
        ("user:ada", "training.train", job_id),
    ]


async def test_a_request_is_shown_without_places(api: Api, tmp_path: Path) -> None:
    job_id = await api.started(person("ada"), TRAIN, QUICK | EXAMPLES)
    shown = (await api.ask(person("bob"), "GET", f"/api/jobs/{job_id}")).json()
    assert (shown["spec"].keys(), shown["spec"]["training"]["rounds"]) == (
        {"export_id", "training", "compiled", "notes"},
        5,
    )
    assert str(tmp_path) not in orjson.dumps(shown).decode()


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({"features": ["nothing"]}, "unknown_column", "nothing"),
        ({"target": "nothing"}, "unknown_column", "nothing"),
        ({"features": ["profit_lamports"]}, "leaking_feature", "profit_lamports"),
        ({"features": ["detected_at_ns"]}, "unregistrable_model", "detected_at_ns"),
        ({"features": ["tip_share", "tip_share"]}, "unknown_column", "twice"),
        ({"dataset": "tick"}, "unregistrable_model", "train on training_examples"),
    ],
)
async def test_wrong_columns_are_refused_by_name_before_anything_is_exported(
    api: Api, body: dict[str, Any], code: str, named: str
) -> None:
    refused = await api.ask(person("ada"), "POST", TRAIN, EXAMPLES | body)
    assert (refused.status_code, refused.json()["code"]) == (400, code)
    assert named in refused.json()["detail"]
    assert api.runner.jobs() == []


@pytest.mark.parametrize(
    ("export", "code", "named"),
    [
        ({"columns": ["id", "slot", "landed", "rivals"]}, "unknown_column", "tip_share"),
        ({"format": "csv"}, "invalid_training", "Parquet"),
    ],
)
async def test_export_that_cannot_be_learned_from_is_refused_at_once(
    api: Api, export: dict[str, Any], code: str, named: str
) -> None:
    export_id = await api.started(person("ada"), EXPORT, {"type": "training_examples", **export})
    await api.runner.wait(export_id)
    refused = await api.ask(
        person("ada"), "POST", TRAIN, {"dataset": export_id, "features": ["tip_share"]}
    )
    assert (refused.status_code, refused.json()["code"]) == (400, code)
    assert named in refused.json()["detail"]


async def test_training_without_a_dataset_is_refused(api: Api) -> None:
    for body in ({}, QUICK):
        refused = await api.ask(person("ada"), "POST", TRAIN, body)
        assert (
            refused.status_code,
            refused.json()["code"],
            refused.json()["errors"][0]["place"],
        ) == (
            422,
            "invalid_request",
            "body.dataset",
        )
    assert api.runner.jobs() == []


async def test_compiled_training_without_a_compiler_is_refused_at_once(
    api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused = await api.ask(person("ada"), "POST", TRAIN, EXAMPLES | {"compiled": True})
    assert (refused.status_code, refused.json()["code"]) == (503, "compiler_missing")
    assert api.runner.jobs() == []


async def test_searches_and_parts_have_bounds(api: Api) -> None:
    long = await api.ask(person("ada"), "POST", TRAIN, EXAMPLES | {"search": {"timeout_s": 101}})
    assert (long.status_code, long.json()["code"], long.json()["field"]) == (
        400,
        "invalid_training",
        "search.timeout_s",
    )
    assert "TRAIN_SEARCH_MAX_S" in long.json()["detail"]
    for path in (EXPORT, f"{EXPORT}/estimate"):
        small = await api.ask(person("ada"), "POST", path, {"type": "tick", "part_rows": 999})
        assert (small.status_code, small.json()["field"]) == (400, "part_rows")
        assert "EXPORT_PART_ROWS_MIN" in small.json()["detail"]
    assert api.runner.jobs() == []


def context(tmp_path: Path, export: Path, training: dict[str, Any], **more: Any) -> Context:
    """Return the context of a training whose export, in the folder `export`, has that state."""
    spec = {
        "export_id": "export-job",
        "export_folder": str(export),
        "export_state": str(tmp_path / "export-job" / "state.json"),
        "training": parse(training).model_dump(mode="json"),
        "compiled": False,
    }
    for name in ("job-1", "export-job"):
        (tmp_path / name).mkdir()
    return Context(
        spec | more,
        tmp_path / "job-1",
        tmp_path / "job-1" / "output",
        logging.getLogger("test"),
        lambda: False,
    )


def export_is(tmp_path: Path, state: JobState) -> None:
    (tmp_path / "export-job" / "state.json").write_bytes(orjson.dumps({"state": state}))


async def test_the_manifest_says_which_job_made_it_for_whom_and_from_what(
    export: Path, tmp_path: Path
) -> None:
    given = context(tmp_path, export, QUICK, owner_name="ada/bot")
    export_is(tmp_path, JobState.SUCCEEDED)
    keys = open_keys(tmp_path / "control", seed_hex=None, key_id=None, now_ns=1)
    registry, fetched = Registry(tmp_path / "models", keys.trust), []

    def fetch(export_id: str, folder: Path, check: Callable[[], None]) -> None:
        check()
        fetched.append((export_id, folder))

    async with running_jobs(tmp_path / "jobs", [train_kind(registry, keys, fetch)]) as runner:
        job = await runner.wait((await runner.submit("train", given.spec, owner="user:ada")).id)
        assert job.state is JobState.SUCCEEDED, job.error
        result = orjson.loads((runner.output(job.id) / "result.json").read_bytes())
        assert {path.name for path in runner.output(job.id).iterdir()} >= {
            "model.json",
            "model.ubj",
            "learning.png",
            "roc.svg",
        }
        assert list(runner.output(job.id).glob("candidate*")) == []
    assert fetched == [("export-job", export)]
    (entry,) = registry.list().entries
    assert {"learning.svg", "roc.svg"} <= set(registry.plots(entry.manifest.model_id))
    lineage = entry.manifest.lineage
    assert (lineage["job"], lineage["export"], lineage["trained_by"]) == (
        job.id,
        "export-job",
        "ada/bot",
    )
    assert (lineage["rows"], lineage["importance"]) == (result["rows"], result["importance"])
    assert lineage["rows"]["train"] > lineage["rows"]["validation"] > 0


def test_a_scheduler_that_is_trusted_no_longer_is_not_spoken_to(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = context(tmp_path, export, {"distributed": {"scheduler": "tcp://127.0.0.5:8786"}})
    export_is(tmp_path, JobState.FAILED)
    monkeypatch.setenv("TRAIN_SCHEDULERS", "tcp://127.0.0.5:8786")
    with pytest.raises(ExportFailedError):
        prepare(given)
    monkeypatch.setenv("TRAIN_SCHEDULERS", "tcp://127.0.0.6:8786")
    with pytest.raises(SchedulerNotAllowedError, match="TRAIN_SCHEDULERS"):
        prepare(given)


@pytest.mark.parametrize(
    "scheduler",
    [
        "tcp://10.0.0.5:8786",
        "tcp://dask.example:8786",
        "tcp://[2001:db8::1]:8786",
        "tls://10.0.0.5:8786",
    ],
)
def test_scheduler_on_another_machine_needs_tls_with_certificates(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    given = context(tmp_path, export, {"distributed": {"scheduler": scheduler}})
    monkeypatch.setenv("TRAIN_SCHEDULERS", scheduler)
    with pytest.raises(SchedulerNotEncryptedError) as caught:
        prepare(given)
    assert caught.value.code == "scheduler_not_encrypted"
    assert (
        "TRAIN_TLS_CA_FILE" if scheduler.startswith("tls") else "name it tls://"
    ) in caught.value.detail


@pytest.mark.parametrize("scheduler", ["tcp://localhost:8786", "tcp://[::1]:8786"])
def test_scheduler_on_this_machine_needs_no_tls(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    given = context(tmp_path, export, {"distributed": {"scheduler": scheduler}})
    export_is(tmp_path, JobState.SUCCEEDED)
    monkeypatch.setenv("TRAIN_SCHEDULERS", scheduler)
    assert (prepare(given).network, prepare(given).spec["tls"]) == (True, None)


def test_failed_export_is_named_with_its_reason(export: Path, tmp_path: Path) -> None:
    given = context(tmp_path, export, QUICK)
    error = {"code": "disk_full", "detail": "/data is full"}
    state = {"state": JobState.FAILED, "error": error}
    (tmp_path / "export-job" / "state.json").write_bytes(orjson.dumps(state))
    with pytest.raises(ExportFailedError) as caught:
        prepare(given)
    assert caught.value.detail.startswith("export export-job failed: /data is full (disk_full);")
    assert caught.value.fields == {"export": "export-job", "reason": "disk_full"}
    (tmp_path / "export-job" / "state.json").unlink()
    with pytest.raises(ExportFailedError, match="export export-job is not there any more"):
        prepare(given)


def test_a_training_that_waits_says_how_far_its_export_is(export: Path, tmp_path: Path) -> None:
    given = context(tmp_path, export, QUICK)
    told: list[tuple[float, float, str]] = []

    def progress(done: float, total: float, note: str = "", **_figures: object) -> None:
        told.append((done, total, note))
        if len(told) == 1:
            (tmp_path / "export-job" / PROGRESS).write_bytes(
                orjson.dumps({"done": 30, "total": 120})
            )
        else:
            export_is(tmp_path, JobState.CANCELLED)

    given.progress = progress  # type: ignore[method-assign]
    export_is(tmp_path, JobState.RUNNING)
    with pytest.raises(ExportFailedError, match="cancelled"):
        prepare(given)
    assert told == [(0.0, 1.0, "waiting for the export"), (30.0, 120.0, "waiting for the export")]
