"""Trainings over HTTP and as jobs: how many a person has, what is written down first, what the work looks at again."""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from mev.app import create_app
from mev.auth.dependencies import PRINCIPAL
from mev.auth.model import MASTER, Kind, Permission, Principal
from mev.control.keys import open_keys
from mev.core.asgi import Scope
from mev.core.errors import UnavailableError
from mev.datasets.routes import router as datasets_router
from mev.datasets.service import Exports, Quota
from mev.gate import Gate
from mev.jobs.context import PROGRESS, Context
from mev.jobs.model import Kind as JobKind
from mev.jobs.model import State
from mev.jobs.routes import router as jobs_router
from mev.jobs.runner import Runner, running
from mev.models.registry import Registry
from mev.security import build
from mev.settings import load
from mev.store.clickhouse import Address, ClickHouse
from mev.store.folder import DataFolder
from mev.store.redis import Redis
from mev.training.errors import ExportFailedError, SchedulerNotAllowedError
from mev.training.job import train_kind, work
from mev.training.routes import router
from mev.training.service import TrainingQuota, Trainings
from mev.training.spec import parse

TRAIN, EXPORT = "/api/training/train", "/api/datasets/export"
MASTER_KEY = "the-master-key-of-the-tests"
ADA = frozenset({Permission.DATASETS_READ, Permission.DATASETS_EXPORT, Permission.MODELS_TRAIN, Permission.MODELS_READ})
QUICK: dict[str, Any] = {"rounds": 5, "params": {"max_depth": 3}, "device": "cpu", "early_stopping_rounds": 0}


def person(name: str | None) -> Principal:
    return Principal(id=f"user:{name}", name=str(name), kind=Kind.USER, permissions=ADA, user=name)


def key(number: int, user: str | None, permissions: frozenset[Permission] = ADA) -> Principal:
    return Principal(id=f"key:{number}", name=f"{user}/{number}", kind=Kind.KEY, permissions=permissions, user=user)


class Trail:
    """What was written down; it can be full."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, str, str]] = []
        self.full = False

    async def __call__(self, actor: str, action: str, object: str, outcome: str, details: Mapping[str, object]) -> None:  # noqa: A002
        if self.full:
            raise UnavailableError("the disk of the audit trail is full")
        self.facts.append((actor, action, object))


class Api:
    """The routes of jobs, exports and trainings, whose work waits until it is cancelled."""

    def __init__(self, http: httpx.AsyncClient, runner: Runner, trail: Trail, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
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
    kinds = [JobKind(name="export", run=quick, in_thread=True), replace(train_kind(), run=patient, in_thread=True)]
    trail, redis, folder = Trail(), Redis(f"unix://{tmp_path}/none", timeout_s=1), DataFolder(tmp_path)
    security = build(load(mev_data_dir=tmp_path, master_api_key=MASTER_KEY), folder, redis, lambda: 0)
    security.passwords.close()
    store = ClickHouse(Address(database="mev", host="127.0.0.1", port=1))  # never asked here
    async with running(tmp_path / "jobs", kinds) as runner:
        exports = Exports(runner, store, Quota(jobs=100, size_bytes=150, part_rows_min=1000))
        trainings = Trainings(
            runner, exports, TrainingQuota(jobs=2, search_s=100), model_dir=tmp_path / "models", control_folder=tmp_path / "control"
        )
        routers = [
            router(trainings, runner, audit=trail),
            datasets_router(exports, runner, audit=trail),
            jobs_router(runner, audit=trail),
        ]
        app = create_app(routers, [], security.gate)
        headers = {"X-API-Key": MASTER_KEY}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mev.example", headers=headers) as http:
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
        assert (refused.status_code, refused.json()["code"], "retry-after" in refused.headers) == (429, "training_quota", True)
        assert "TRAIN_JOBS_PER_PRINCIPAL" in refused.json()["detail"]
    # Before it is refused nothing is exported for it.
    assert (await api.ask(key(2, "ada"), "POST", TRAIN, {})).status_code == 429
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
    job_id = await api.started(key(1, "ada"), TRAIN, {})
    for who in (key(2, "ada", frozenset({Permission.DATASETS_READ})), key(2, "ada"), person("bob"), replace(MASTER, permissions=ADA)):
        refused = await api.ask(who, "DELETE", f"/api/jobs/{job_id}")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), who
    assert (await api.ask(person("ada"), "DELETE", f"/api/jobs/{job_id}")).status_code == 202
    assert (await api.runner.wait(job_id)).state is State.CANCELLED
    other = await api.started(key(1, "ada"), TRAIN, {})
    assert (await api.ask(key(1, "ada"), "DELETE", f"/api/jobs/{other}")).status_code == 202


async def test_exports_count_by_the_person_and_deleting_one_makes_room(api: Api) -> None:
    body = {"type": "bundle"}
    ids = [await api.started(who, EXPORT, body) for who in (person("ada"), key(1, "ada"))]
    for export_id in ids:
        await api.runner.wait(export_id)
    full = await api.ask(key(2, "ada"), "POST", EXPORT, body)
    assert (full.status_code, full.json()["code"], "delete some" in full.json()["detail"]) == (429, "export_quota", True)
    assert (await api.ask(key(2, "ada"), "DELETE", f"{EXPORT}/{ids[1]}")).status_code == 403
    assert (await api.ask(person("ada"), "DELETE", f"{EXPORT}/{ids[1]}")).status_code == 204
    assert api.trail.facts[-1] == ("user:ada", "datasets.delete", ids[1])
    await api.started(key(2, "ada"), EXPORT, body)


async def test_nothing_starts_that_is_not_written_down(api: Api) -> None:
    api.trail.full = True
    for path, body in ((TRAIN, {}), (EXPORT, {"type": "bundle"})):
        refused = await api.ask(person("ada"), "POST", path, body)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert api.runner.jobs() == []
    api.trail.full = False
    job_id = await api.started(person("ada"), TRAIN, {})
    (export,) = api.runner.jobs(kind="export")
    assert api.trail.facts == [("user:ada", "datasets.export", export.id), ("user:ada", "training.train", job_id)]


async def test_a_request_is_shown_without_places(api: Api, tmp_path: Path) -> None:
    job_id = await api.started(person("ada"), TRAIN, QUICK)
    shown = (await api.ask(person("bob"), "GET", f"/api/jobs/{job_id}")).json()
    assert (shown["spec"].keys(), shown["spec"]["training"]["rounds"]) == ({"export_id", "training", "compiled"}, 5)
    assert str(tmp_path) not in orjson.dumps(shown).decode()


async def test_searches_and_parts_have_bounds(api: Api) -> None:
    long = await api.ask(person("ada"), "POST", TRAIN, {"search": {"timeout_s": 101}})
    assert (long.status_code, long.json()["code"], long.json()["field"]) == (400, "invalid_training", "search.timeout_s")
    assert "TRAIN_SEARCH_MAX_S" in long.json()["detail"]
    for path in (EXPORT, f"{EXPORT}/estimate"):
        small = await api.ask(person("ada"), "POST", path, {"type": "tick", "part_rows": 999})
        assert (small.status_code, small.json()["field"]) == (400, "part_rows")
        assert "EXPORT_PART_ROWS_MIN" in small.json()["detail"]
    assert api.runner.jobs() == []


def context(tmp_path: Path, export: Path, training: dict[str, Any], **more: Any) -> Context:
    """Return what the work of a training is given whose export, in the folder `export`, has the state that lies beside it."""
    spec = {
        "export_folder": str(export),
        "export_state": str(tmp_path / "export-job" / "state.json"),
        "training": parse(training).model_dump(mode="json"),
        "compiled": False,
        "model_dir": str(tmp_path / "models"),
        "control_folder": str(tmp_path / "control"),
    }
    for name in ("job-1", "export-job"):
        (tmp_path / name).mkdir()
    return Context(spec | more, tmp_path / "job-1", tmp_path / "job-1" / "output", logging.getLogger("test"), lambda: False)


def export_is(tmp_path: Path, state: State) -> None:
    (tmp_path / "export-job" / "state.json").write_bytes(orjson.dumps({"state": state}))


def test_the_manifest_says_which_job_made_it_for_whom_and_from_what(export: Path, tmp_path: Path) -> None:
    given = context(tmp_path, export, QUICK, owner_name="ada/bot")
    export_is(tmp_path, State.SUCCEEDED)
    work(given)
    result = orjson.loads((given.output / "result.json").read_bytes())
    trust = open_keys(tmp_path / "control", seed_hex=None, key_id=None, now_ns=1).trust
    (entry,) = Registry(tmp_path / "models", trust).list().entries
    lineage = entry.manifest.lineage
    assert (lineage["job"], lineage["trained_by"]) == ("job-1", "ada/bot")
    assert (lineage["rows"], lineage["importance"]) == (result["rows"], result["importance"])
    assert lineage["rows"]["train"] > lineage["rows"]["validation"] > 0


def test_a_scheduler_that_is_trusted_no_longer_is_not_spoken_to(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = context(tmp_path, export, {"distributed": {"scheduler": "tcp://10.0.0.5:8786"}})
    export_is(tmp_path, State.FAILED)
    monkeypatch.setenv("TRAIN_SCHEDULERS", "tcp://10.0.0.5:8786")
    with pytest.raises(ExportFailedError):
        work(given)
    monkeypatch.setenv("TRAIN_SCHEDULERS", "tcp://10.0.0.6:8786")
    with pytest.raises(SchedulerNotAllowedError, match="TRAIN_SCHEDULERS"):
        work(given)


def test_a_training_that_waits_says_how_far_its_export_is(export: Path, tmp_path: Path) -> None:
    given = context(tmp_path, export, QUICK)
    told: list[tuple[float, float, str]] = []

    def progress(done: float, total: float, note: str = "", **_figures: object) -> None:
        told.append((done, total, note))
        if len(told) == 1:
            (tmp_path / "export-job" / PROGRESS).write_bytes(orjson.dumps({"done": 30, "total": 120}))
        else:
            export_is(tmp_path, State.CANCELLED)

    given.progress = progress  # type: ignore[method-assign]
    export_is(tmp_path, State.RUNNING)
    with pytest.raises(ExportFailedError, match="cancelled"):
        work(given)
    assert told == [(0.0, 1.0, "waiting for the export"), (30.0, 120.0, "waiting for the export")]
