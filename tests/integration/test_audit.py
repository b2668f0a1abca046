"""The audit trail of a running system: searched, proved, copied, and every tampering named."""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from mev.audit import frame
from mev.audit.journal import Journal
from mev.audit.trusted import read_trusted, trusted_file
from mev.crypto.keys import load_or_create
from mev.crypto.merkle import leaf_hash, verify_consistency, verify_inclusion
from mev.crypto.note import read_checkpoint
from mev.crypto.trust import AUDIT
from mev.store.clickhouse import Address, ClickHouse
from mev.wire.pb.audit_pb2 import AuditRecord, Checkpoint
from tests.services.system import RunningSystem
from tests.services.waits import until

PATH = "/api/control/audit-log"
COUNT = 30


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Run a system whose journal held some records when it started."""
    running = RunningSystem(tmp_path_factory.mktemp("mev") / "data")
    write(running, COUNT)
    running.start()
    with running.client() as client:
        until(lambda: len(items(client, action="test.*", limit=1000)) == COUNT)
        until(lambda: bool(client.get(f"{PATH}/checkpoints").json()["items"]))
    yield running
    assert running.stop() == 0, running.log.read_text()


def write(system: RunningSystem, count: int) -> None:
    """Write records into the journal while the system does not run."""
    folder = system.data_dir / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    log = Journal(folder, "api", load_or_create(folder / "signing-key"), segment_bytes=1200)
    for number in range(count):
        actor = "=HYPERLINK(1)" if number == 0 else ("alice", "bob")[number % 2]
        record = AuditRecord(
            at_ns=time.time_ns(),
            actor=actor,
            action=f"test.{number % 3}",
            object=f"agent-{number}",
            outcome="ok",
        )
        log.append([record])
    log.close()


def items(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(PATH, params=query)
    assert answer.is_success, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def test_records_are_found_by_who_what_and_when(http: httpx.Client) -> None:
    newest = items(http, action="test.*", limit=5)
    assert [item["object"] for item in newest] == [
        f"agent-{n}" for n in range(COUNT - 1, COUNT - 6, -1)
    ]
    assert {item["actor"] for item in items(http, actor="bob", limit=1000)} == {"bob"}
    assert [item["object"] for item in items(http, action="test.1", actor="bob", limit=2)] == [
        "agent-25",
        "agent-19",
    ]
    assert [item["object"] for item in items(http, object="agent-7")] == ["agent-7"]
    assert items(http, action="test.*", outcome="denied") == []
    now = datetime.now(UTC)
    assert items(http, **{"from": (now + timedelta(hours=1)).isoformat()}) == []
    assert (
        len(
            items(
                http,
                action="test.*",
                limit=1000,
                **{"from": (now - timedelta(hours=1)).isoformat(), "to": now.isoformat()},
            )
        )
        == COUNT
    )
    middle = newest[2]
    exact = datetime.fromtimestamp(middle["at_ns"] // 1000 / 1e6 + 1e-6, UTC)
    assert middle["object"] in {
        item["object"] for item in items(http, action="test.*", to=exact.isoformat())
    }


def test_pages_show_every_record_once(http: httpx.Client) -> None:
    seen, cursor = [], None
    while True:
        page = http.get(
            f"{PATH}?action=test.*&limit=7{f'&cursor={cursor}' if cursor else ''}"
        ).json()
        seen += [item["object"] for item in page["items"]]
        if not (cursor := page["next_cursor"]):
            break
    assert seen == [f"agent-{n}" for n in range(COUNT - 1, -1, -1)]


WRONG = {
    "limit=0": 422,
    "limit=1001": 422,
    "from=yesterday": 422,
    "from=2026-01-01T00:00:00": 422,
    "cursor=x": 400,
    "format=xml": 422,
}


@pytest.mark.parametrize(("query", "status"), WRONG.items())
def test_a_wrong_question_is_refused(http: httpx.Client, query: str, status: int) -> None:
    answer = http.get(f"{PATH}?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    )


def test_a_spreadsheet_gets_text_and_no_formulas(http: httpx.Client) -> None:
    for answer in (
        http.get(PATH, params={"action": "test.*", "limit": 1000, "format": "csv"}),
        http.get(PATH, params={"action": "test.*", "limit": 1000}, headers={"Accept": "text/csv"}),
    ):
        assert answer.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert len(rows) == COUNT
        assert rows[-1]["actor"] == "'=HYPERLINK(1)"
        assert "x-next-cursor" not in answer.headers
    first = http.get(PATH, params={"action": "test.*", "limit": 4, "format": "csv"})
    second = http.get(
        PATH,
        params={
            "action": "test.*",
            "limit": 4,
            "format": "csv",
            "cursor": first.headers["x-next-cursor"],
        },
    )
    assert next(csv.DictReader(io.StringIO(second.text)))["object"] == f"agent-{COUNT - 5}"


def test_every_record_is_proved_to_be_under_a_signature(
    system: RunningSystem, http: httpx.Client
) -> None:
    trust = read_trusted(trusted_file(system.data_dir / "audit"))
    log_id = items(http, action="test.*", limit=1)[0]["log_id"]
    for index in (0, 13, COUNT - 1):
        answer = http.get(f"{PATH}/{log_id}/{index}/proof").json()
        head = trust.open(base64.b64decode(answer["checkpoint"]), Checkpoint, AUDIT, 0)
        record = base64.b64decode(answer["record"])
        assert hashlib.sha256(b"\x00" + record).hexdigest() == answer["leaf_hash"]
        assert AuditRecord.FromString(record).object == f"agent-{index}"
        proof = [bytes.fromhex(step) for step in answer["proof"]]
        assert verify_inclusion(
            bytes.fromhex(answer["leaf_hash"]), index, head.size, proof, head.root_hash
        )
    answer = http.get(f"{PATH}/{log_id}/consistency", params={"from": 11, "to": COUNT}).json()
    roots = bytes.fromhex(answer["from_root"]), bytes.fromhex(answer["to_root"])
    assert verify_consistency(11, COUNT, [bytes.fromhex(step) for step in answer["proof"]], *roots)
    codes = {
        f"{log_id}/100000/proof": (409, "not_in_checkpoint"),
        "elsewhere/0/proof": (404, "no_such_record"),
        f"{log_id}/consistency?from=9&to=3": (400, "no_such_tree"),
        f"{log_id}/consistency?from=0&to=100000": (400, "no_such_tree"),
        f"{log_id}/x/proof": (422, "invalid_request"),
    }
    for path, (status, code) in codes.items():
        answer = http.get(f"{PATH}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_checkpoint_and_tiles_are_served_to_public_verifiers(http: httpx.Client) -> None:
    log_id = items(http, action="test.*", limit=1)[0]["log_id"]
    base = f"{PATH}/tlog/{log_id}"
    head = read_checkpoint(http.get(f"{base}/checkpoint").content)
    assert http.get(f"{base}/verifier-key").text.startswith(f"{head.origin}+")
    hashes = http.get(f"{base}/tile/0/000.p/{COUNT}").content
    bundle = http.get(f"{base}/tile/entries/000.p/{COUNT}").content
    for index in range(COUNT):
        length = int.from_bytes(bundle[:2])
        record, bundle = bundle[2 : 2 + length], bundle[2 + length :]
        assert leaf_hash(record) == hashes[32 * index : 32 * index + 32]
    assert bundle == b""
    for path in (
        "checkpoint",
        "verifier-key",
        f"tile/0/000.p/{COUNT}",
        f"tile/entries/000.p/{COUNT}",
    ):
        whole, head_only = http.get(f"{base}/{path}"), http.head(f"{base}/{path}")
        assert (head_only.status_code, head_only.content) == (200, b"")
        assert head_only.headers["content-type"] == whole.headers["content-type"]
        assert whole.headers["cache-control"] == "no-store"
        refused = http.post(f"{base}/{path}")
        assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (
            405,
            {"GET", "HEAD", "OPTIONS"},
        )
    wrong = (
        f"{base}/tile/0/999",
        f"{base}/tile/0/../../x",
        f"{PATH}/tlog/elsewhere/checkpoint",
        f"{PATH}/tlog/elsewhere/verifier-key",
    )
    for path in wrong:
        answer = http.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (
            404,
            "application/problem+json",
        )
    assert (
        http.get(wrong[0]).json()["code"] == http.get(wrong[2]).json()["code"] == "no_such_record"
    )


def test_nobody_reads_it_unasked(system: RunningSystem) -> None:
    for path in (
        "",
        "/checkpoints",
        "/x/0/proof",
        "/x/consistency?from=0&to=0",
        "/tlog/x/checkpoint",
        "/tlog/x/tile/0/000",
    ):
        assert httpx.get(system.url + PATH + path).status_code == 401


def test_the_commands_read_and_verify_it(system: RunningSystem) -> None:
    listed = system.run("audit", "list", "--action", "test.*", "--limit", "3").stdout
    assert re.search(r"bob +test\.2 +agent-29 +ok", listed)
    shown = json.loads(system.run("audit", "list", "--object", "agent-3", "--json").stdout)
    assert [item["object"] for item in shown["items"]] == ["agent-3"]
    verified = system.run("audit", "verify", "--against-copies").stdout
    assert "sound" in verified
    assert "DAMAGED" not in verified
    assert "no checkpoint of it any more" not in verified


@pytest.fixture(scope="module")
def data_of_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the data folder of a system that ran, copied its trail, and stopped."""
    running = RunningSystem(tmp_path_factory.mktemp("stopped") / "data")
    write(running, COUNT)
    running.start()
    with running.client() as client:
        until(lambda: bool(client.get(f"{PATH}/checkpoints").json()["items"]))
    assert running.stop() == 0
    return running.data_dir


@pytest.fixture
def stopped(data_of_stopped: Path, tmp_path: Path) -> RunningSystem:
    """Give a stopped system of the test's own."""
    shutil.copytree(data_of_stopped, tmp_path / "data", symlinks=True)
    return RunningSystem(tmp_path / "data")


def verify(system: RunningSystem, *arguments: str) -> str:
    """Return what `mev audit verify` says is damaged."""
    done = system.run("audit", "verify", *arguments, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("DAMAGED: ")]
    return line


@pytest.mark.slow
def test_tampering_with_the_files_is_named_offline(stopped: RunningSystem) -> None:
    assert "sound" in stopped.run("audit", "verify").stdout
    paths = sorted((stopped.data_dir / "audit").glob("*.log"))
    first, last = paths[0], paths[-1]
    whole = first.read_bytes()
    pieces = list(frame.scan(whole))

    first.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    start = max(piece.offset for piece in pieces if piece.offset <= 600)
    assert f"{first.name}, byte {start}, record " in verify(stopped)

    one, other = pieces[2], pieces[3]
    swapped = frame.encode(0, other.body)[0] + frame.encode(0, one.body)[0]
    first.write_bytes(whole[: one.offset] + swapped + whole[pieces[4].offset :])
    assert f"{first.name}, byte {one.offset}, record 1: record 2 of log" in verify(stopped)
    first.write_bytes(whole)

    end = last.read_bytes()
    cut = list(frame.scan(end))[-1].offset
    last.write_bytes(end[:cut])
    assert f"{last.name}, byte {cut}, record " in (line := verify(stopped))
    assert "the end is cut off" in line
    last.write_bytes(end)
    assert "sound" in stopped.run("audit", "verify").stdout


@pytest.mark.slow
def test_tampering_with_the_copies_is_named(stopped: RunningSystem) -> None:
    clickhouse = ClickHouse(Address(database="mev", path=stopped.data_dir / "clickhouse"))
    clickhouse.command(
        "ALTER TABLE mev.audit_log DELETE WHERE object = 'agent-17' SETTINGS mutations_sync = 2"
    )
    clickhouse.close()
    stopped.start()
    try:
        assert "ClickHouse audit_log of" in (line := verify(stopped))  # as a matter of course
        assert "record 17: the row is missing" in line
        assert "sound" in stopped.run("audit", "verify", "--no-copies").stdout
    finally:
        stopped.stop()


def test_a_missing_trail_is_one_line(stopped: RunningSystem, tmp_path: Path) -> None:
    done = stopped.run("audit", "verify", "--folder", str(tmp_path / "nowhere"), check=False)
    assert done.returncode == 1
    assert "no audit trail in" in done.stderr
    done = stopped.run("audit", "verify", "--against-copies", check=False)
    assert done.returncode == 2
    assert "no system runs on" in done.stderr
    assert "sound" in done.stdout
    done = stopped.run("audit", "verify")
    assert "no system runs here" in done.stdout


def test_rewritten_history_is_found_by_age_and_by_a_checkpoint_kept_elsewhere(
    stopped: RunningSystem, tmp_path: Path
) -> None:
    folder = stopped.data_dir / "audit"
    (heads,) = folder.glob("*.checkpoints")
    kept = tmp_path / "kept"
    kept.write_bytes(base64.b64encode(list(frame.scan(heads.read_bytes()))[-1].body))
    assert "sound" in stopped.run("audit", "verify", "--checkpoint", str(kept)).stdout
    rewrite(folder, at_ns=time.time_ns())
    assert "DAMAGED: kept, record " in verify(stopped, "--checkpoint", str(kept))
    rewrite(folder, at_ns=1)
    assert "are in no checkpoint" in verify(stopped)


def forget(system: RunningSystem, copy: str) -> None:
    """Take away the copy of the trail in ClickHouse or in Kafka while the system does not run."""
    if copy == "Kafka":
        for path in (system.data_dir / "kafka").rglob("mev.audit.v1*"):
            shutil.rmtree(path)
        return
    clickhouse = ClickHouse(Address(database="mev", path=system.data_dir / "clickhouse"))
    for table in ("audit_log", "audit_checkpoints"):
        clickhouse.command(f"TRUNCATE TABLE mev.{table}")
    clickhouse.close()


@pytest.mark.parametrize("forgotten", ["Kafka", pytest.param("ClickHouse", marks=pytest.mark.slow)])
def test_start_does_not_sign_rewritten_history(stopped: RunningSystem, forgotten: str) -> None:
    folder = stopped.data_dir / "audit"
    rewrite(folder, at_ns=time.time_ns())
    old = (folder / "api.log-id").read_text()
    forget(stopped, forgotten)
    stopped.start()
    try:
        with stopped.client() as client:
            until(lambda: bool(items(client, action="audit.log_damaged")))
            (record,) = items(client, action="audit.log_damaged")
            assert (record["log_id"] != old, record["outcome"]) == (True, "journal_damaged")
            assert (
                ({"Kafka": "ClickHouse", "ClickHouse": "Kafka"}[forgotten])
                in record["details_json"]
            )
        assert not (folder / f"{old}.checkpoints").exists()
    finally:
        stopped.stop()
    assert old in stopped.run("audit", "verify", "--no-copies", check=False).stdout


@pytest.mark.slow
@pytest.mark.parametrize("removed", [("api*",), ("api*", "trusted-keys")], ids=["log", "log, keys"])
def test_removed_log_is_recorded_at_start_and_named_by_verify(
    stopped: RunningSystem, removed: tuple[str, ...]
) -> None:
    folder = stopped.data_dir / "audit"
    old = (folder / "api.log-id").read_text()
    for pattern in removed:
        for path in folder.glob(pattern):
            path.unlink()
    stopped.start()
    try:
        with stopped.client() as client:
            until(lambda: bool(items(client, action="audit.log_damaged")))
            (record,) = items(client, action="audit.log_damaged")
            assert (record["log_id"] != old, record["outcome"]) == (True, "journal_damaged")
            assert "was removed" in record["details_json"]
        assert f"DAMAGED: {old}: a trusted key signed checkpoints" in verify(stopped)
    finally:
        stopped.stop()


@pytest.mark.slow
def test_start_goes_on_with_log_that_agrees_with_its_copies(stopped: RunningSystem) -> None:
    old = (stopped.data_dir / "audit" / "api.log-id").read_text()
    stopped.start()
    assert stopped.stop() == 0
    assert (stopped.data_dir / "audit" / "api.log-id").read_text() == old


def rewrite(folder: Path, *, at_ns: int) -> None:
    """Change every record, recompute all hashes and drop the checkpoints, without any key."""
    for path in folder.glob("*.checkpoints"):
        path.unlink()
    first, *later = sorted(folder.glob("*.log"))
    for path in later:
        path.unlink()
    header, *pieces = frame.scan(first.read_bytes())
    content = frame.encode(frame.HEADER, header.body)[0]
    for piece in pieces:
        if piece.kind == frame.RECORD:
            record = AuditRecord.FromString(piece.body)
            record.actor, record.at_ns = "mallory", at_ns
            content += frame.encode(frame.RECORD, record.SerializeToString(deterministic=True))[0]
    first.write_bytes(content)
