"""Exports of one replica that are read, downloaded and removed through another."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest
from obstore.store import LocalStore

from mev.datasets import manifest
from mev.datasets.export import ExportLimits
from mev.datasets.query import Query, checked
from mev.datasets.service import ExportQuota, Exports, export_kind
from mev.datasets.shared import SharedExports
from mev.jobs.boot import running_jobs
from mev.jobs.errors import UnknownJobError
from mev.jobs.model import JobState, Owner
from mev.jobs.runner import Runner
from mev.store.clickhouse import ClickHouse
from mev.store.object_errors import BucketMissingError, DamagedObjectError
from mev.store.objects import ObjectStore
from mev.wire.pb.events_pb2 import Tick
from tests.unit.datasets.stored import empty, put

OWNER = Owner(id="key-1", name="ci", person="user:1")
TICKS = 2500


@dataclass
class Replica:
    runner: Runner
    exports: Exports
    shared: SharedExports

    async def exported(self) -> str:
        job = await self.exports.submit(query(), owner=OWNER)
        assert (await self.runner.wait(job.id)).state is JobState.SUCCEEDED
        return job.id

    def sha256(self, export_id: str, name: str) -> str:
        path, _ = self.exports.file(export_id, name)
        return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Place:
    folder: Path
    store: Path
    stack: AsyncExitStack
    clickhouse: ClickHouse
    pinned: dict[str, str]

    async def replica(self, name: str, *, expires_s: float = 3600) -> Replica:
        objects = ObjectStore("test://store", lambda: LocalStore(self.store), self.store)
        shared = SharedExports(objects, lambda: self.pinned, expires_s=expires_s)
        kind = export_kind(
            self.clickhouse, ExportLimits(), expires_s=expires_s, folder=None, shared=shared
        )
        runner = await self.stack.enter_async_context(running_jobs(self.folder / name, [kind]))
        quota = ExportQuota(jobs=10, size_bytes=1 << 30)
        return Replica(runner, Exports(runner, self.clickhouse, quota, shared), shared)


@pytest.fixture
async def place(tmp_path: Path, store: ClickHouse) -> AsyncIterator[Place]:
    empty(store)
    put(store, "tick", [Tick(market_id=f"m{n}", timestamp_ns=n + 1) for n in range(TICKS)])
    (tmp_path / "store").mkdir()
    async with AsyncExitStack() as stack:
        yield Place(tmp_path, tmp_path / "store", stack, store, {})


def query() -> Query:
    return replace(checked("tick"), part_rows=1000)


async def test_an_export_of_one_is_complete_on_another(place: Place) -> None:
    a, b = await place.replica("a"), await place.replica("b")
    export_id = await a.exported()
    job = await b.exports.find(export_id)
    assert (job.state, job.owner, job.person) == (JobState.SUCCEEDED, OWNER.id, OWNER.person)
    content = b.exports.manifest(export_id)
    assert content == a.exports.manifest(export_id)
    assert content is not None
    assert [part["rows"] for part in content["parts"]] == [1000, 1000, 500]
    assert b.exports.query(export_id) == query()
    for part in content["parts"]:
        assert b.sha256(export_id, part["file"]) == part["sha256"]
    assert b.sha256(export_id, manifest.NAME) == a.sha256(export_id, manifest.NAME)


async def test_it_outlives_a_restart_and_the_store(place: Place) -> None:
    a, b = await place.replica("a"), await place.replica("b")
    export_id = await a.exported()
    await b.exports.find(export_id)
    folder = b.runner.output(export_id)
    b.shared.fetch_all(export_id, folder, lambda: None)
    await b.runner.close()
    place.store.rename(place.folder / "away")
    again = await place.replica("b")
    assert (await again.exports.find(export_id)).id == export_id
    for part in (again.exports.manifest(export_id) or {})["parts"]:
        assert again.sha256(export_id, part["file"]) == part["sha256"]


async def test_a_damaged_file_is_not_given_away(place: Place) -> None:
    a, b = await place.replica("a"), await place.replica("b")
    export_id = await a.exported()
    part = (a.exports.manifest(export_id) or {})["parts"][0]
    (place.store / "exports" / export_id / part["sha256"]).write_bytes(b"changed")
    await b.exports.find(export_id)
    with pytest.raises(DamagedObjectError, match="restore it"):
        b.exports.file(export_id, part["file"])
    assert {path.name for path in b.runner.output(export_id).iterdir()} == {manifest.NAME}


async def test_file_names_cannot_leave_the_folder(place: Place) -> None:
    a, b = await place.replica("a"), await place.replica("b")
    export_id = await a.exported()
    folder = place.store / "exports" / export_id
    content = dict(a.exports.manifest(export_id) or {})
    content["parts"] = [{**content["parts"][0], "file": "../../evil"}]
    forged = orjson.dumps(content)
    digest = hashlib.sha256(forged).hexdigest()
    (folder / digest).write_bytes(forged)
    document = orjson.loads((folder / "export.json").read_bytes())
    (folder / "export.json").write_bytes(orjson.dumps({**document, "manifest": digest}))
    with pytest.raises(DamagedObjectError, match="does not describe an export"):
        await b.exports.find(export_id)
    (folder / "export.json").write_bytes(b"{}")
    with pytest.raises(DamagedObjectError, match="does not describe an export"):
        await b.exports.find(export_id)


@pytest.mark.parametrize("name", ["..", "../models", "0" * 36, "none"])
async def test_an_unknown_export_is_unknown(place: Place, name: str) -> None:
    with pytest.raises(UnknownJobError):
        await (await place.replica("a")).exports.find(name)


async def test_an_export_removed_by_one_is_not_in_the_store(place: Place) -> None:
    a, b, c = [await place.replica(name) for name in "abc"]
    export_id, kept = await a.exported(), await a.exported()
    await b.exports.find(export_id)
    await b.exports.remove(export_id)
    for replica in (b, c):
        with pytest.raises(UnknownJobError):
            await replica.exports.find(export_id)
    assert [path.name for path in (place.store / "exports").iterdir() if any(path.iterdir())] == [
        kept
    ]


async def test_the_next_export_removes_expired_ones_that_no_model_pins(place: Place) -> None:
    a, b = await place.replica("a"), await place.replica("b")
    expired, pinned = await a.exported(), await a.exported()
    for name in (expired, pinned):
        path = place.store / "exports" / name / "export.json"
        document = orjson.loads(path.read_bytes())
        document["job"]["expires_ns"] = 1
        path.write_bytes(orjson.dumps(document))
    place.pinned[pinned] = "a model learned from it"
    assert (await b.exports.find(pinned)).id == pinned
    with pytest.raises(UnknownJobError):
        await b.exports.find(expired)
    newest = await b.exported()
    left = {path.name for path in (place.store / "exports").iterdir() if any(path.iterdir())}
    assert left == {pinned, newest}


async def test_an_export_succeeds_while_the_store_is_away(place: Place) -> None:
    a, b = await place.replica("a"), await place.replica("b")
    place.store.rename(place.folder / "away")
    export_id = await a.exported()
    assert a.exports.manifest(export_id)
    assert "the export is on this machine only" in a.runner.log(export_id).read_text()
    with pytest.raises(BucketMissingError):
        await b.exports.find(export_id)
