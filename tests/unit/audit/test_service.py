import asyncio
import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from mev.audit.errors import AuditUnavailableError
from mev.audit.service import MAX_TEXT, Audit
from mev.wire.pb.audit_pb2 import AuditRecord
from tests.services.waits import until, until_async
from tests.unit.audit.trail import KEY, journal, verdict


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    """Give a running trail."""
    running = Audit(tmp_path, "api", KEY, timeout_s=5)
    running.start()
    yield running
    running.close()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Give what makes room again on a disk that takes nothing."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", fail)
    yield monkeypatch.undo
    monkeypatch.undo()


def written(audit: Audit) -> list[AuditRecord]:
    return [AuditRecord.FromString(body) for body in audit.journal.records(0, 10_000)]


async def test_a_record_is_on_the_disk_when_record_returns(audit: Audit, tmp_path: Path) -> None:
    details = {"token": "hunter2", "level": "HALTED"}
    index = await audit.record(
        "alice",
        "control.level",
        "agent-1",
        "ok",
        details,
        session="s-1",
        remote="127.0.0.1",
        correlation_id="c-1",
    )
    content = (tmp_path / f"{audit.journal.log_id}-{0:012d}.log").read_bytes()
    assert b"control.level" in content
    assert b"hunter2" not in content
    (record,) = written(audit)
    assert (record.index, record.actor, record.object, record.session, record.remote) == (
        index,
        "alice",
        "agent-1",
        "s-1",
        "127.0.0.1",
    )
    assert (record.outcome, record.correlation_id, json.loads(record.details_json)["level"]) == (
        "ok",
        "c-1",
        "HALTED",
    )
    assert abs(record.at_ns - time.time_ns()) < 10**10


async def test_many_records_share_a_write_and_keep_their_order(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = []
    sync = os.fsync

    def counted(descriptor: int) -> None:
        syncs.append(descriptor)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    indexes = await asyncio.gather(*(audit.record("a", "b", str(number)) for number in range(3000)))
    assert indexes == list(range(3000))
    assert [record.object for record in written(audit)] == [str(number) for number in range(3000)]
    assert len(syncs) < 100


async def test_the_actor_is_always_set_and_texts_are_bounded(audit: Audit) -> None:
    await audit.record("", "x", "\ud800" + "o" * 5000)
    (record,) = written(audit)
    assert record.actor == "system"
    assert len(record.object) == MAX_TEXT


async def test_on_a_full_disk_raising_is_refused_and_lowering_is_written_later(
    audit: Audit, full_disk: Callable[[], None]
) -> None:
    with pytest.raises(AuditUnavailableError, match="No space left on device") as refused:
        await audit.record("alice", "control.raise", "agent-1")
    assert (refused.value.code, refused.value.status) == ("audit_unavailable", 503)

    started = time.perf_counter()
    for number in range(50):
        audit.record_later(
            "alice", "control.lower", f"agent-{number}", details={"password": "hunter2"}
        )
    assert time.perf_counter() - started < 0.5
    until(lambda: (REGISTRY.get_sample_value("mev_audit_spooled") or 0) >= 50)
    assert audit.journal.size == 0
    full_disk()
    until(lambda: audit.journal.size == 50)
    assert [(record.action, record.object) for record in written(audit)] == [
        ("control.lower", f"agent-{n}") for n in range(50)
    ]
    until(lambda: REGISTRY.get_sample_value("mev_audit_spooled") == 0)
    assert await audit.record("alice", "control.raise", "agent-1") == 50


def test_a_real_full_disk(tmp_path: Path) -> None:
    program = (
        "import asyncio, signal, sys\n"
        "from pathlib import Path\n"
        "from mev.audit.errors import AuditUnavailableError\n"
        "from mev.audit.service import Audit\n"
        "from tests.unit.audit.trail import KEY\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "async def main():\n"
        "    audit = Audit(Path(sys.argv[1]), 'api', KEY)\n"
        "    audit.start()\n"
        "    done = 0\n"
        "    try:\n"
        "        while True:\n"
        "            done = await audit.record('a', 'raise', 'x' * 500) + 1\n"
        "    except AuditUnavailableError as error:\n"
        "        audit.record_later('a', 'lower', 'y')\n"
        "        print(done, error.code)\n"
        "    audit.close()\n"
        "asyncio.run(main())\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        preexec_fn=limit,
        timeout=30,
    )
    acknowledged, code = done.stdout.split()
    assert code == "audit_unavailable"
    again = journal(tmp_path)
    assert again.damage is None
    # The last, small record may have found room where the large one did not.
    assert int(acknowledged) in {again.size, again.size - 1}
    again.close()
    assert verdict(tmp_path).damage is None


async def test_a_disk_that_hangs_refuses_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit(tmp_path, "api", KEY, timeout_s=0.2)
    audit.start()
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.6))
    with pytest.raises(AuditUnavailableError, match=r"within 0\.2 s"):
        await audit.record("a", "b", "c")
    monkeypatch.undo()
    await asyncio.to_thread(audit.close)


class HeldDisk:
    """A disk that holds every write until :meth:`release`."""

    def __init__(self) -> None:
        self.holds = threading.Event()
        """Set once a write is held."""
        self._go_on = threading.Event()
        self._sync = os.fsync

    def release(self) -> None:
        self._go_on.set()

    def fsync(self, descriptor: int) -> None:
        self.holds.set()
        self._go_on.wait(10)
        self._sync(descriptor)


@pytest.fixture
def held_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDisk]:
    disk = HeldDisk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    yield disk
    disk.release()


async def test_everyone_is_told_the_index_of_their_own_record(
    audit: Audit, held_disk: HeldDisk
) -> None:
    tasks = [asyncio.create_task(audit.record("a", "raise", "first"))]
    await until_async(held_disk.holds.is_set)
    for number in range(3):
        audit.record_later("a", "lower", f"later-{number}")
        tasks.append(asyncio.create_task(audit.record("a", "raise", f"now-{number}")))
    await asyncio.sleep(0)  # each task hands its record over
    held_disk.release()
    indexes = await asyncio.gather(*tasks)
    assert [written(audit)[index].object for index in indexes] == [
        "first",
        "now-0",
        "now-1",
        "now-2",
    ]
    assert audit.journal.size == 7


async def test_no_more_wait_than_may(
    audit: Audit, held_disk: HeldDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mev.audit.service._MAX_WAITING", 3)
    tasks = [asyncio.create_task(audit.record("a", "raise", "first"))]
    await until_async(held_disk.holds.is_set)
    tasks += [asyncio.create_task(audit.record("a", "raise", str(number))) for number in range(3)]
    await asyncio.sleep(0)  # each task hands its record over
    with pytest.raises(AuditUnavailableError, match="too many"):
        await audit.record("a", "raise", "more")
    held_disk.release()
    assert await asyncio.gather(*tasks) == [0, 1, 2, 3]


def test_a_long_spool_is_written_whole(audit: Audit, full_disk: Callable[[], None]) -> None:
    for number in range(2500):
        audit.record_later("a", "lower", str(number))
    full_disk()
    until(lambda: audit.journal.size >= 2500)
    assert [record.object for record in written(audit)] == [str(number) for number in range(2500)]


def test_the_spool_is_bounded_and_what_is_lost_is_counted(
    tmp_path: Path, full_disk: Callable[[], None]
) -> None:
    audit = Audit(tmp_path, "api", KEY, spool_records=3)
    audit.start()
    before = REGISTRY.get_sample_value("mev_audit_spool_dropped_total") or 0
    for number in range(5):
        audit.record_later("a", "b", str(number))
    assert REGISTRY.get_sample_value("mev_audit_spool_dropped_total") == before + 2
    full_disk()
    until(lambda: audit.journal.size == 3)
    audit.close()


def test_record_later_takes_anything(audit: Audit) -> None:
    loop: dict[str, object] = {}
    loop["self"] = loop
    audit.record_later("a", "b", "c", details=loop)
    audit.record_later("a", "b", "c", details={"x": object()})
    until(lambda: audit.journal.size == 2)
    first, second = written(audit)
    assert (first.actor, first.action, first.object, first.details_json) == (
        "a",
        "b",
        "c",
        '{"left_out":"not JSON"}',
    )
    assert (second.action, second.details_json[:6]) == ("b", '{"x":"')


async def test_a_trail_that_cannot_be_opened_is_opened_later(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.write_text("a file is in the way")
    audit = Audit(folder, "api", KEY)
    audit.start()
    with pytest.raises(AuditUnavailableError):
        await audit.record("a", "raise", "b")
    with pytest.raises(AuditUnavailableError):
        _ = audit.journal
    audit.record_later("a", "lower", "b", details={"password": "hunter2"})
    folder.unlink()
    await asyncio.to_thread(until, lambda: audit._journal is not None and audit.journal.size == 1)
    (record,) = written(audit)
    assert "hunter2" not in record.details_json
    await asyncio.to_thread(audit.close)


async def test_a_damaged_log_is_left_and_a_new_one_says_so(tmp_path: Path) -> None:
    first = Audit(tmp_path, "api", KEY)
    first.start()
    await first.record("a", "b", "c")
    old = first.journal.log_id
    await asyncio.to_thread(first.close)
    path = tmp_path / f"{old}-{0:012d}.log"
    damaged = path.read_bytes()[:-1] + b"!"
    path.write_bytes(damaged)

    again = Audit(tmp_path, "api", KEY)
    again.start()
    await asyncio.to_thread(until, lambda: again.journal.size == 1)
    (record,) = written(again)
    assert (record.action, record.actor) == ("audit.log_damaged", "system")
    assert path.name in record.details_json
    assert path.read_bytes() == damaged
    await asyncio.to_thread(again.close)


async def test_what_waits_is_written_before_the_end(tmp_path: Path) -> None:
    audit = Audit(tmp_path, "api", KEY)
    audit.start()
    for number in range(100):
        audit.record_later("a", "b", str(number))
    await asyncio.to_thread(audit.close)
    found = verdict(tmp_path)
    assert found.log is not None
    assert (found.log.tree.size, found.log.heads[-1].checkpoint.size) == (100, 100)
