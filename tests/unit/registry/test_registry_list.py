"""Tests of the manifest cache and its invalidation."""

from dataclasses import replace
from pathlib import Path

import pytest

from mev.core.clock import now_ns
from mev.crypto.envelope import seal
from mev.crypto.keys import SigningKey
from mev.crypto.trust import COMMAND, ROOT, TrustStore
from mev.registry import manifest_cache
from mev.registry.registry import Registry
from mev.scoring.load import read_manifest
from mev.scoring.manifest import Manifest
from mev.wire.pb.envelope_pb2 import KeySet
from tests.unit.registry.samples import KEY, STRANGER, TRUST, Made

LATER_NS = 3_600_000_000_000


class Reads:
    """Counts what is read and checked; for it every file has been there for an hour."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.at_ns = now_ns() + LATER_NS
        monkeypatch.setattr(manifest_cache, "read_manifest", self._read)

    def now_ns(self) -> int:
        return self.at_ns

    def _read(self, folder: Path, model_id: str, trust: TrustStore, *, at_ns: int) -> Manifest:
        self.count += 1
        return read_manifest(folder, model_id, trust, at_ns=at_ns)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def made(made: Made, reads: Reads) -> Made:
    """Return the registered model, in a registry with the clock of `reads`."""
    return replace(made, registry=Registry(made.folder, TRUST, clock=reads.now_ns))


def manifest_of(made: Made) -> Path:
    return made.folder / f"{made.manifest.model_id}.manifest.json"


def test_a_manifest_that_did_not_change_is_checked_once(made: Made, reads: Reads) -> None:
    bad = made.folder / f"{'2' * 64}.manifest.json"
    bad.write_bytes(b"{}")
    first = made.registry.list()
    assert (len(first.entries), list(first.refused), reads.count) == (1, ["2" * 64], 2)
    made.registry.point("best", made.manifest.model_id)
    again = made.registry.list()
    assert (again.entries[0].aliases, list(again.refused), reads.count) == (
        ("best",),
        ["2" * 64],
        2,
    )
    made.registry.add(replace(made.manifest, model_id="3" * 64), {}, KEY)
    assert (len(made.registry.list().entries), reads.count) == (2, 3)
    bad.unlink()
    assert (made.registry.list().refused, reads.count) == ({}, 3)


@pytest.mark.parametrize("how", ["written over", "replaced", "opened to others", "linked"])
def test_a_manifest_that_somebody_touched_is_checked_again(
    made: Made, reads: Reads, how: str
) -> None:
    path = manifest_of(made)
    assert made.registry.list().refused == {}
    spoilt = path.read_bytes().replace(b"A", b"B", 1)
    match how:
        case "written over":
            path.chmod(0o600)
            path.write_bytes(spoilt)
        case "replaced":
            (made.folder / "other").write_bytes(spoilt)
            (made.folder / "other").rename(path)
        case "opened to others":
            path.chmod(0o666)
        case _:
            path.with_name("second").hardlink_to(path)
    assert list(made.registry.list().refused) == [made.manifest.model_id]
    assert reads.count == 2


def test_a_manifest_that_changed_a_moment_ago_is_not_remembered(made: Made, reads: Reads) -> None:
    reads.at_ns = manifest_of(made).stat().st_ctime_ns + 1_000
    made.registry.list()
    made.registry.list()
    assert reads.count == 2
    reads.at_ns += LATER_NS
    made.registry.list()
    made.registry.list()
    assert reads.count == 3


def test_another_key_set_and_a_key_that_ends_are_noticed(made: Made, reads: Reads) -> None:
    root = SigningKey.generate()
    end_ns = reads.at_ns + LATER_NS
    trust = TrustStore(
        KeySet(
            epoch=1, keys=[root.trusted_for(ROOT), KEY.trusted_for(COMMAND, not_after_ns=end_ns)]
        )
    )
    registry = Registry(made.folder, trust, clock=reads.now_ns)
    assert registry.list().refused == {}
    reads.at_ns = end_ns + 1
    assert "no longer valid" in read_reason(registry, made)
    reads.at_ns = end_ns - 1
    assert registry.list().refused == {}

    trust.rotate(
        seal(KeySet(epoch=2, keys=[root.trusted_for(ROOT), STRANGER.trusted_for(COMMAND)]), root),
        reads.at_ns,
    )
    assert "unsigned_manifest" in read_reason(registry, made)


def read_reason(registry: Registry, made: Made) -> str:
    return registry.list().refused[made.manifest.model_id]
