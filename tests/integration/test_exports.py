"""Exports and jobs of a running system, over HTTP and by the commands."""

import base64
import hashlib
import json
import select
import shutil
import socket
import socketserver
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pyarrow.parquet as pq
import pytest
from websockets.sync.client import connect

from mev.datasets.catalog import DATASETS
from mev.datasets.export import ExportLimits
from mev.datasets.query import Query, checked
from mev.jobs.context import PROGRESS
from mev.simulate.model import Market
from mev.sink.writer import Writer
from mev.store.clickhouse import Address, ClickHouse, ClickHouseUnavailableError
from mev.wire.features import OPPORTUNITY
from mev.wire.registry import EVENT_TYPES
from tests.integration.test_http import listed, problem
from tests.services.clickhouse import ClickHouseHttp
from tests.services.system import RunningSystem, running_system
from tests.services.waits import until_document
from tests.unit.datasets.stored import export, put

COUNT = 2_000
EXPORT = "/api/datasets/export"
ENDS = {"succeeded", "failed", "cancelled"}


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Allow files of one row, so that exports take their time."""
    return {"EXPORT_PART_ROWS_MIN": "1"}


@pytest.fixture(scope="module", autouse=True)
def _events(system: RunningSystem) -> None:
    """Put a market in."""
    system.simulate(COUNT)


def ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """Return a job once it has ended."""
    return dict(until_document(http, f"/api/jobs/{job_id}", lambda job: job["state"] in ENDS))


def exported(http: httpx.Client, **body: Any) -> dict[str, Any]:
    """Return an export that has succeeded."""
    answer = http.post(EXPORT, json=body)
    assert answer.status_code == 202, answer.text
    job = ended(http, answer.json()["id"])
    assert job["state"] == "succeeded", job
    return dict(http.get(f"{EXPORT}/{job['id']}").raise_for_status().json())


def slow(http: httpx.Client, parts: int = 2) -> str:
    """Start an export that takes its time, and return it once it has made some parts."""
    export_id: str = (
        http.post(EXPORT, json={"type": "tick", "part_rows": 1}).raise_for_status().json()["id"]
    )

    def has_parts(job: dict[str, Any]) -> bool:
        progress = job["progress"]
        return bool(progress and progress["figures"]["parts"] >= parts)

    until_document(http, f"/api/jobs/{export_id}", has_parts)
    return export_id


def test_datasets_are_listed_with_rows_slots_and_times(http: httpx.Client) -> None:
    items = {
        item["type"]: item for item in http.get("/api/datasets").raise_for_status().json()["items"]
    }
    assert list(items) == list(DATASETS)
    opportunity = items["opportunity"]
    newest = http.get("/api/events/opportunity?limit=1").json()["items"][0]
    assert (opportunity["rows"], opportunity["slots"]["last"]) == (COUNT, newest["slot"])
    assert opportunity["time"]["first"].startswith("2025-01-01T00:00:00")
    assert items["liquidation"]["rows"] == 0
    assert items["liquidation"]["slots"] is None
    assert items["bundle"]["time"] is None
    examples = http.get("/api/datasets/schema/training_examples").json()
    assert examples["features"] == list(OPPORTUNITY.names)
    assert (
        http.get("/api/datasets/schema/bundle").json()["schema_hash"]
        == EVENT_TYPES["bundle"].schema_hash
    )


def test_an_export_is_estimated_made_listed_and_downloaded_in_pieces(
    http: httpx.Client, tmp_path: Path
) -> None:
    body = {"type": "training_examples", "part_rows": 800, "filter": ["simulated == true"]}
    estimate = http.post(f"{EXPORT}/estimate", json=body).raise_for_status().json()
    assert (estimate["rows"], estimate["parts"]) == (COUNT, 3)
    export = exported(http, **body)
    manifest, job = export["manifest"], export["job"]
    assert (manifest["rows"], len(manifest["parts"]), manifest["id"]) == (COUNT, 3, export["id"])
    assert estimate["bytes"] / 4 < manifest["bytes"] < estimate["bytes"] * 4
    assert (job["progress"]["share"], job["progress"]["figures"]["rows"], job["owner"]) == (
        1.0,
        COUNT,
        "master",
    )
    assert job["spec"]["filter"] == ["simulated == true"]
    names = [path.rpartition("/")[2] for path in export["files"]]
    assert names == [
        "manifest.json",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    assert http.get(export["files"][0]).json() == manifest
    landed = 0
    for path, part in zip(export["files"][1:], manifest["parts"], strict=True):
        middle = part["bytes"] // 2
        first = http.get(path, headers={"Range": f"bytes=0-{middle - 1}"})
        rest = http.get(
            path, headers={"Range": f"bytes={middle}-", "If-Range": first.headers["etag"]}
        )
        assert (first.status_code, rest.status_code) == (206, 206)
        content = first.content + rest.content
        assert hashlib.sha256(content).hexdigest() == part["sha256"]
        assert first.headers["repr-digest"].startswith("sha-256=:")
        assert http.get(path).content == content
        (tmp_path / part["file"]).write_bytes(content)
        landed += sum(pq.read_table(tmp_path / part["file"]).column("landed").to_pylist())
    assert 0.1 * COUNT < landed < 0.9 * COUNT
    again = exported(http, **body)["manifest"]
    assert again["parts"] == manifest["parts"]


def test_a_download_that_broke_off_goes_on_and_is_verified_by_its_digest(
    http: httpx.Client, system: RunningSystem
) -> None:
    found = exported(http, type="opportunity", format="ndjson")
    path, (part,) = found["files"][1], found["manifest"]["parts"]
    with system.client() as broken, broken.stream("GET", path) as answer:
        etag, digest = answer.headers["etag"], answer.headers["repr-digest"]
        content = next(answer.iter_raw())  # and the connection is closed before the rest has come
    assert 0 < len(content) < part["bytes"]
    onward = {"Range": f"bytes={len(content)}-"}
    rest = http.get(path, headers={**onward, "If-Range": etag})
    assert (rest.status_code, rest.headers["content-range"]) == (
        206,
        f"bytes {len(content)}-{part['bytes'] - 1}/{part['bytes']}",
    )
    assert (rest.headers["etag"], rest.headers["repr-digest"]) == (etag, digest)
    whole = hashlib.sha256(content + rest.content).digest()
    assert (whole.hex(), f"sha-256=:{base64.b64encode(whole).decode()}:") == (
        part["sha256"],
        digest,
    )
    other = http.get(path, headers={**onward, "If-Range": '"of another file"'})
    assert (other.status_code, len(other.content)) == (200, part["bytes"])
    replay_pool = http.get(path, headers={"Range": f"bytes={part['bytes']}-"})
    assert (replay_pool.status_code, replay_pool.headers["content-range"]) == (
        416,
        f"bytes */{part['bytes']}",
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_goes_on_with_half_a_file_and_leaves_a_whole_one(
    http: httpx.Client, system: RunningSystem, tmp_path: Path
) -> None:
    found = exported(http, type="opportunity", format="csv")
    whole = http.get(found["files"][1]).content
    (tmp_path / "file").write_bytes(whole[:1_000])
    command = [
        "curl",
        "-s",
        "-C",
        "-",
        "-H",
        f"X-API-Key: {system.key}",
        "-o",
        str(tmp_path / "file"),
        system.url + found["files"][1],
    ]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "file").read_bytes() == whole
    subprocess.run(command, check=False, timeout=60)  # what it says of 416 depends on its version
    assert (tmp_path / "file").read_bytes() == whole


def test_files_that_are_not_in_the_manifest_are_not_given(
    http: httpx.Client, system: RunningSystem
) -> None:
    export = exported(http, type="bundle")
    output = system.data_dir / "jobs" / export["id"] / "output"
    (output / "secret").write_text("x")
    for name in ("secret", "..%2Fstate.json", "%2e%2e", "part-99999.parquet"):
        answer = http.get(f"{EXPORT}/{export['id']}/files/{name}")
        assert answer.status_code == 404, name
    problem(http.get(f"{EXPORT}/{export['id']}/files/secret"), 404, "unknown_export_file")
    problem(http.get(f"{EXPORT}/nope"), 404, "unknown_job")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"type": "nope"}, 404, "unknown_dataset"),
        ({"type": "tick", "columns": ["nope"]}, 400, "invalid_export"),
        ({"type": "tick", "filter": ["nope == 1"]}, 400, "bad_filter"),
        ({"type": "tick", "sql": "SELECT 1"}, 422, "invalid_request"),
        ({"type": "tick", "format": "xlsx"}, 422, "invalid_request"),
        ({"type": "tick", "sample": 2}, 422, "invalid_request"),
        ({"type": "tick", "time": {"from": "2025-01-01T00:00:00"}}, 422, "invalid_request"),
        ({"type": "bundle", "time": {"from": "2025-01-01T00:00:00Z"}}, 400, "invalid_export"),
    ],
)
def test_a_wrong_export_is_refused_before_it_is_a_job(
    http: httpx.Client, body: dict[str, Any], status: int, code: str
) -> None:
    before = http.get("/api/jobs").json()["items"]
    problem(http.post(EXPORT, json=body), status, code)
    problem(http.post(f"{EXPORT}/estimate", json=body), status, code)
    assert http.get("/api/jobs").json()["items"] == before


def test_times_bound_an_export(http: httpx.Client) -> None:
    span = {"from": "2025-01-01T00:00:00Z", "to": "2025-01-01T00:00:01.5Z"}
    inside = exported(http, type="tick", time=span, format="ndjson")["manifest"]
    outside = exported(
        http, type="tick", time={"from": span["to"]}, format="csv", compression="gzip"
    )["manifest"]
    assert 0 < inside["rows"] < COUNT
    assert inside["rows"] + outside["rows"] == COUNT


def test_a_running_export_has_no_files_and_is_cancelled(
    http: httpx.Client, system: RunningSystem
) -> None:
    export_id = slow(http)
    problem(http.get(f"{EXPORT}/{export_id}/files/part-00000.parquet"), 409, "export_not_ready")
    export = http.get(f"{EXPORT}/{export_id}").json()
    assert (export["manifest"], export["files"]) == (None, [])
    assert http.delete(f"/api/jobs/{export_id}").raise_for_status().json()["state"] in {
        "cancelling",
        "cancelled",
    }
    assert ended(http, export_id)["state"] == "cancelled"
    assert not (system.data_dir / "jobs" / export_id / "output").exists()
    problem(http.delete(f"/api/jobs/{export_id}"), 409, "job_ended")
    assert "cancelled" in http.get(f"/api/jobs/{export_id}/log").text
    assert [
        record["actor"]
        for record in listed(
            http, f"/api/control/audit-log?action=jobs.cancel&object={export_id}", 1
        )
    ] == ["master"]
    assert [
        record["actor"]
        for record in listed(
            http, f"/api/control/audit-log?action=datasets.export&object={export_id}", 1
        )
    ] == ["master"]


def test_progress_comes_over_the_stream_and_says_nothing_of_whose_it_is(
    http: httpx.Client, system: RunningSystem
) -> None:
    url = system.url.replace("http", "ws", 1) + "/api/realtime/ws"
    with connect(url, additional_headers=key_of(http, "stream:read")) as stream:
        stream.send(json.dumps({"op": "subscribe", "id": "jobs", "topics": ["job"]}))
        assert json.loads(stream.recv(timeout=30))["op"] == "subscribed"
        export_id = exported(http, type="tick", filter=["simulated == true"])["id"]
        heard: list[dict[str, Any]] = []
        while not heard or heard[-1]["state"] != "succeeded":
            message = json.loads(stream.recv(timeout=30))
            heard += [each for each in message.get("events", []) if each["id"] == export_id]
    fields = {
        "type",
        "id",
        "timestamp_ns",
        "kind",
        "state",
        "attempt",
        "done",
        "total",
        "note",
        "error_code",
    }
    assert {name for each in heard for name in each} - {"partition", "offset"} == fields
    assert [each["state"] for each in heard if each["state"] != "running"] == [
        "queued",
        "succeeded",
    ]
    assert heard[-1]["done"] == heard[-1]["total"] == COUNT
    assert not {"master", "simulated"} & set(json.dumps(heard).split('"'))


def key_of(http: httpx.Client, *scopes: str) -> dict[str, str]:
    made = (
        http.post("/api/auth/keys", json={"name": "-".join(scopes), "scopes": list(scopes)})
        .raise_for_status()
        .json()
    )
    return {"X-API-Key": made["key"]}


def test_who_may_read_may_not_export_and_nobody_cancels_what_others_started(
    http: httpx.Client,
) -> None:
    reader, exporter = (
        key_of(http, "datasets:read"),
        key_of(http, "datasets:read", "datasets:export"),
    )
    assert http.get("/api/datasets", headers=reader).is_success
    problem(http.post(EXPORT, json={"type": "bundle"}, headers=reader), 403, "forbidden")
    export_id = slow(http)
    assert http.get(f"/api/jobs/{export_id}", headers=exporter).is_success
    problem(http.delete(f"/api/jobs/{export_id}", headers=exporter), 403, "forbidden")
    http.delete(f"/api/jobs/{export_id}").raise_for_status()
    ended(http, export_id)


def test_nobody_has_more_exports_waiting_than_allowed(
    http: httpx.Client, system: RunningSystem
) -> None:
    first = slow(http)
    more = [
        http.post(EXPORT, json={"type": "tick", "part_rows": 1}).raise_for_status().json()["id"]
        for _ in range(3)
    ]
    answer = http.post(EXPORT, json={"type": "bundle"})
    assert "EXPORT_JOBS_PER_PRINCIPAL" in problem(answer, 429, "export_quota")["detail"]
    key = key_of(http, "datasets:export")
    problem(
        http.post(EXPORT, json={"type": "bundle"}, headers=key), 429, "export_quota"
    )  # a key is no second person
    other = somebody(http, system)
    theirs = (
        http.post(EXPORT, json={"type": "bundle"}, headers=other).raise_for_status().json()["id"]
    )
    for job_id in (*more, first):
        http.delete(f"/api/jobs/{job_id}").raise_for_status()
    assert [ended(http, job_id)["state"] for job_id in (first, *more, theirs)] == [
        "cancelled"
    ] * 4 + ["succeeded"]
    page = http.get("/api/jobs?kind=export&limit=2").json()
    following = http.get(f"/api/jobs?kind=export&limit=2&cursor={page['next_cursor']}").json()
    assert [item["id"] for item in page["items"] + following["items"]] == [theirs, *reversed(more)]


def somebody(http: httpx.Client, system: RunningSystem) -> dict[str, str]:
    """Return the header with a key of another person."""
    name, password = f"u{uuid.uuid4().hex[:8]}", "a password of the tests 1"
    http.post(
        "/api/auth/users", json={"name": name, "role": "analyst", "password": password}
    ).raise_for_status()
    login = (
        httpx.post(
            f"{system.url}/api/auth/login", json={"name": name, "password": password}, timeout=30
        )
        .raise_for_status()
        .json()
    )
    with httpx.Client(
        base_url=system.url,
        timeout=30,
        headers={"Authorization": f"Bearer {login['access_token']}"},
    ) as client:
        return key_of(client, "datasets:read", "datasets:export")


def test_an_export_is_deleted_by_who_made_it(http: httpx.Client, system: RunningSystem) -> None:
    export_id = exported(http, type="bundle")["id"]
    for header in (somebody(http, system), key_of(http, "datasets:export")):
        problem(http.delete(f"{EXPORT}/{export_id}", headers=header), 403, "forbidden")
    assert http.delete(f"{EXPORT}/{export_id}").status_code == 204
    assert not (system.data_dir / "jobs" / export_id).exists()
    for answer in (
        http.get(f"{EXPORT}/{export_id}"),
        http.get(f"/api/jobs/{export_id}"),
        http.delete(f"{EXPORT}/{export_id}"),
    ):
        problem(answer, 404, "unknown_job")
    running = slow(http)
    problem(http.delete(f"{EXPORT}/{running}"), 409, "job_not_ended")
    http.delete(f"/api/jobs/{running}").raise_for_status()
    ended(http, running)
    assert "is deleted" in system.run("datasets", "delete", running).stdout
    for deleted in (export_id, running):
        assert [
            record["actor"]
            for record in listed(
                http, f"/api/control/audit-log?action=datasets.delete&object={deleted}", 1
            )
        ] == ["master"]


def test_the_commands_export_download_and_look_at_jobs(
    system: RunningSystem, tmp_path: Path
) -> None:
    options = (
        "--columns",
        "bundle_id,landed",
        "--filter",
        "landed == true",
        "--format",
        "csv",
        "--part-rows",
        "500",
    )
    estimate = json.loads(system.run("export", "bundle", *options, "--estimate", "--json").stdout)
    export = json.loads(
        system.run("export", "bundle", *options, "--out", str(tmp_path / "got"), "--json").stdout
    )
    manifest = json.loads((tmp_path / "got" / "manifest.json").read_text())
    assert manifest == export["manifest"]
    assert manifest["rows"] == estimate["rows"] > 0
    lines = [
        line
        for part in manifest["parts"]
        for line in (tmp_path / "got" / part["file"]).read_text().splitlines()[1:]
    ]
    assert len(lines) == manifest["rows"]
    assert all(line.endswith(",true") for line in lines)
    first = tmp_path / "got" / manifest["parts"][0]["file"]
    whole = first.read_bytes()
    first.unlink()
    first.with_name(f".{first.name}.partial").write_bytes(whole[:100])
    system.run("datasets", "download", export["id"], "--out", str(tmp_path / "got"))
    assert first.read_bytes() == whole
    assert export["id"] in system.run("jobs", "list", "--kind", "export").stdout
    assert (
        json.loads(system.run("jobs", "show", export["id"], "--json").stdout)["state"]
        == "succeeded"
    )
    followed = system.run("jobs", "follow", export["id"])
    assert ("succeeded" in followed.stdout, "100%" in followed.stdout) == (True, True)
    assert "rows in" in system.run("jobs", "log", export["id"]).stdout
    assert "training_examples" in system.run("datasets", "list").stdout
    assert "tip_share" in system.run("datasets", "schema", "training_examples").stdout
    done = system.run("jobs", "cancel", export["id"], check=False)
    assert (done.returncode, "has ended already" in done.stderr) == (1, True)


@contextmanager
def stored(server: ClickHouseHttp, address: tuple[str, int]) -> Iterator[ClickHouse]:
    """Give a database behind HTTP, reached by `address`, with a market in it."""
    host, port = address
    database = f"test_{uuid.uuid4().hex}"
    with closing(
        ClickHouse(
            Address(
                database=database, host=host, port=port, user=server.user, password=server.password
            )
        )
    ) as store:
        Writer(store, lambda _: None, "cluster").prepare()
        steps = [market.step() for market in [Market(7, 100.0)] for _ in range(COUNT)]
        put(store, "opportunity", [opportunity for _, opportunity, _ in steps])
        put(store, "bundle", [bundle for _, _, bundle in steps])
        yield store
        store.command(f"DROP DATABASE `{database}`")


def test_a_server_gives_the_same_bytes_as_the_embedded_engine(
    http: httpx.Client, clickhouse_http: ClickHouseHttp, tmp_path: Path
) -> None:
    bodies = [
        {"type": "training_examples"},
        {"type": "opportunity", "format": "arrow"},
        {"type": "bundle", "format": "csv"},
    ]
    with stored(clickhouse_http, (clickhouse_http.host, clickhouse_http.port)) as store:
        for number, body in enumerate(bodies):
            ours = exported(http, part_rows=700, **body)["manifest"]
            theirs = export(store, tmp_path / str(number), Query.from_json(ours["query"]))
            assert theirs["parts"] == ours["parts"]
        with pytest.raises(ClickHouseUnavailableError, match=r"(?i)memory"):
            export(
                store,
                tmp_path / "small",
                Query.from_json(ours["query"]),
                limits=ExportLimits(memory_bytes=1_000),
            )


@pytest.mark.slow
def test_an_export_waits_for_a_server_that_died_and_has_the_same_bytes(
    clickhouse_http: ClickHouseHttp, tmp_path: Path
) -> None:
    query = checked("opportunity", part_rows=300)
    folder = tmp_path / "disturbed"
    seen: list[str] = []

    def disturb() -> bool:
        """Kill the server after the first part, and restart it when the export waits for it."""
        if not seen and list(folder.glob("output/part-*")):
            clickhouse_http.kill()
            seen.append("killed")
        elif seen == ["killed"] and "waiting for ClickHouse" in (folder / PROGRESS).read_text():
            clickhouse_http.start()
            seen.append("started")
        return False

    with stored(clickhouse_http, (clickhouse_http.host, clickhouse_http.port)) as store:
        whole = export(store, tmp_path / "whole", query)
        assert export(store, folder, query, cancelled=disturb)["parts"] == whole["parts"]
        assert seen == ["killed", "started"]
        clickhouse_http.kill()
        with pytest.raises(ClickHouseUnavailableError, match="EXPORT_RETRY_S"):
            export(store, tmp_path / "given up", query, limits=ExportLimits(retry_s=0.0))
        clickhouse_http.start()


class Cutting(socketserver.BaseRequestHandler):
    """Proxy to the server at `behind` that cuts the connection once, within an answer."""

    behind: ClassVar[tuple[str, int]]
    armed: ClassVar[threading.Event]

    def handle(self) -> None:
        """Pass on until either end closes."""
        with socket.create_connection(self.behind) as server:
            ends = {self.request: server, server: self.request}
            while True:
                for source in select.select([*ends], [], [])[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is server and self.armed.is_set() and len(data) > 4_000:
                        self.armed.clear()
                        self.request.sendall(data[:2_000])
                        return
                    ends[source].sendall(data)


def test_an_answer_that_breaks_off_is_asked_for_again(
    clickhouse_http: ClickHouseHttp, tmp_path: Path
) -> None:
    query = checked("opportunity", part_rows=1_000)
    armed = threading.Event()
    handler = type(
        "Handler",
        (Cutting,),
        {"behind": (clickhouse_http.host, clickhouse_http.port), "armed": armed},
    )
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        with stored(clickhouse_http, ("127.0.0.1", proxy.server_address[1])) as store:
            whole = export(store, tmp_path / "whole", query)
            armed.set()
            assert export(store, tmp_path / "cut", query)["parts"] == whole["parts"]
            assert not armed.is_set()
        proxy.shutdown()


@pytest.fixture
def crashing(tmp_path: Path) -> Iterator[RunningSystem]:
    """Give a system of its own."""
    with running_system(
        tmp_path / "data", EXPORT_DIR=str(tmp_path / "exports"), EXPORT_PART_ROWS_MIN="1"
    ) as running:
        yield running


@pytest.mark.slow
def test_an_export_survives_the_death_of_everything(
    crashing: RunningSystem, tmp_path: Path
) -> None:
    crashing.simulate(400)
    with crashing.client() as http:
        export_id = slow(http, parts=5)
    crashing.kill()
    output = tmp_path / "exports" / export_id
    made = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 5 <= len(made) < 400
    assert not (output / "manifest.json").exists()
    crashing.start()
    with crashing.client() as http:
        job = ended(http, export_id)
        assert (job["state"], job["attempts"]) == ("succeeded", 2)
        export = http.get(f"{EXPORT}/{export_id}").json()
        assert export["manifest"]["rows"] == len(export["manifest"]["parts"]) == 400
        kept = [
            name for name, written in made.items() if (output / name).stat().st_mtime_ns == written
        ]
        assert len(kept) >= len(made) - 1
        for path, part in list(zip(export["files"][1:], export["manifest"]["parts"], strict=True))[
            :20
        ]:
            assert hashlib.sha256(http.get(path).content).hexdigest() == part["sha256"]
