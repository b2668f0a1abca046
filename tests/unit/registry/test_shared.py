from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import orjson
import pytest
from obstore.store import LocalStore, MemoryStore

from mev.core.clock import now_ns
from mev.crypto.keys import SigningKey
from mev.crypto.trust import COMMAND, Retired, TrustStore
from mev.registry.errors import LateManifestError, ModelInUseError, UnknownModelError
from mev.registry.registry import Registry
from mev.scoring import probe
from mev.scoring.errors import BadManifestError
from mev.scoring.manifest import MAX_BYTES
from mev.store.object_errors import DamagedObjectError, ObjectStoreUnavailableError
from mev.store.objects import ObjectStore
from mev.wire.pb.envelope_pb2 import KeySet
from tests.services.models import register_bytes
from tests.unit.registry.samples import KEY, TRUST, Made

INDEX = "models.json"
T = TypeVar("T")


class Place:
    """An object store in a folder or in memory that can be unreachable, and its replicas."""

    def __init__(self, folder: Path, *, memory: bool = False) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir()
        self.is_up = True
        self.asked = 0
        kept = MemoryStore()
        self._open = (lambda: kept) if memory else (lambda: LocalStore(self.store))
        self._in_files = not memory

    def objects(self) -> ObjectStore:
        return _Objects(self)

    def replica(self, name: str, trust: TrustStore = TRUST) -> Registry:
        return Registry(self.folder / name, trust, objects=self.objects())

    def restarted(self, registry: Registry) -> Registry:
        return Registry(registry.folder, registry.trust, objects=self.objects())


class _Objects(ObjectStore):
    def __init__(self, place: Place) -> None:
        super().__init__("test://store", place._open, place.store if place._in_files else None)
        self._place_of = place

    def _do(self, work: Callable[[], T]) -> T:
        self._place_of.asked += 1
        if not self._place_of.is_up:
            raise ObjectStoreUnavailableError("the store does not answer")
        return super()._do(work)


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, memory=request.param == "memory")


@pytest.fixture
def files(tmp_path: Path) -> Place:
    return Place(tmp_path)


def ids(registry: Registry) -> set[str]:
    return {entry.manifest.model_id for entry in registry.list(archived=True).entries}


def test_a_model_of_one_replica_is_complete_on_another(place: Place) -> None:
    a, b = place.replica("a"), place.replica("b")
    assert ids(b) == set()
    model_id = register_bytes(a, "first", KEY, "so")
    assert ids(b) == {model_id}
    for form in ("ubj", "mevt", "so"):
        assert b.read(model_id, form) == f"first {form}".encode()
    manifest = b.get(model_id).manifest
    file = b.agents_file(model_id, f"{manifest.mevt_sha256}.mevt")
    assert file.path.read_bytes() == b"first mevt"
    assert b.agents_file(model_id, f"{model_id}.manifest.json").path.is_file()


def test_a_real_model_of_another_replica_scores(place: Place, original: Made) -> None:
    a, b = place.replica("a"), place.replica("b")
    content = {form: original.path(form).read_bytes() for form in ("ubj", "mevt", "so")}
    a.add(original.manifest, content, KEY)
    for form in ("mevt", "so"):
        predictor = b.load(original.manifest.model_id, form)
        scores = predictor.predict(original.manifest.golden_rows)
        assert probe.difference(original.manifest.golden_scores, scores) <= probe.TOLERANCE


def test_aliases_and_archived_models_are_the_same_everywhere(place: Place) -> None:
    a, b = place.replica("a"), place.replica("b")
    model_id, other = register_bytes(a, "first", KEY), register_bytes(b, "second", KEY)
    a.point("best", model_id)
    assert b.get("best").manifest.model_id == model_id
    with pytest.raises(ModelInUseError, match="is best"):
        b.archive(model_id)
    b.point("best", other)
    assert a.get(model_id).aliases == ()
    a.archive(model_id)
    assert b.get(model_id).archived_at
    with pytest.raises(ModelInUseError, match="archived"):
        b.point("best", model_id)


def test_no_change_of_two_replicas_is_lost(place: Place) -> None:
    replicas = [place.replica("a"), place.replica("b")]
    model_id = register_bytes(replicas[0], "first", KEY)

    def work(number: int) -> None:
        registry = replicas[number % 2]
        registry.point(f"alias-{number}", model_id)
        register_bytes(registry, f"model {number}", KEY)

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(12)))
    for registry in replicas:
        assert registry.get(model_id).aliases == tuple(sorted(f"alias-{n}" for n in range(12)))
        assert len(ids(registry)) == 13


def test_plots_are_shared(place: Place, original: Made) -> None:
    a, b = place.replica("a"), place.replica("b")
    plots = {"roc.svg": b"<svg>roc</svg>", "profit.png": b"\x89PNG"}
    a.add(original.manifest, {"mevt": original.path("mevt").read_bytes()}, KEY, plots=plots)
    assert b.plots(original.manifest.model_id) == plots
    place.is_up = False
    assert place.restarted(b).plots(original.manifest.model_id) == plots


def test_the_folder_is_read_while_the_store_is_down_and_changes_are_refused(place: Place) -> None:
    a, b = place.replica("a"), place.replica("b")
    model_id = register_bytes(a, "first", KEY)
    a.point("best", model_id)
    assert ids(b) == {model_id}
    place.is_up = False
    for registry in (b, place.restarted(b)):
        assert registry.get("best").manifest.model_id == model_id
        with pytest.raises(ObjectStoreUnavailableError):
            registry.point("best", None)
        with pytest.raises(ObjectStoreUnavailableError):
            registry.check_shared()
    place.is_up = True
    restarted = place.restarted(b)
    restarted.point("best", None)
    restarted.check_shared()
    assert place.restarted(a).get(model_id).aliases == ()


def test_a_store_that_does_not_answer_is_asked_by_sharing_only(place: Place) -> None:
    a, b = place.replica("a"), place.replica("b")
    model_id = register_bytes(a, "first", KEY)
    assert ids(b) == {model_id}
    place.is_up = False
    assert ids(b) == {model_id}
    asked = place.asked
    for _ in range(3):
        assert ids(b) == {model_id}
        with pytest.raises(ObjectStoreUnavailableError):
            b.check_shared()
        with pytest.raises(ObjectStoreUnavailableError):
            b.point("best", model_id)
    assert place.asked == asked
    place.is_up = True
    second = register_bytes(a, "second", KEY)
    assert ids(b) == {model_id}
    b.share()
    assert ids(b) == {model_id, second}
    b.check_shared()


def test_a_model_registered_while_the_store_is_down_is_shared_later(place: Place) -> None:
    a, b = place.replica("a"), place.replica("b")
    a.share()
    place.is_up = False
    model_id = register_bytes(a, "first", KEY)
    assert ids(a) == {model_id}
    with pytest.raises(ObjectStoreUnavailableError):
        a.share()
    place.is_up = True
    assert ids(b) == set()
    a.share()
    assert ids(b) == {model_id}
    assert b.read(model_id, "mevt") == b"first mevt"


def test_the_models_and_aliases_of_an_existing_folder_are_taken_over(place: Place) -> None:
    alone = Registry(place.folder / "a", TRUST)
    first, second = register_bytes(alone, "first", KEY), register_bytes(alone, "second", KEY)
    alone.point("best", first)
    alone.archive(second)
    b = place.replica("b")
    third = register_bytes(b, "third", KEY)
    b.point("best", third)
    b.point("other", third)
    a = place.replica("a")
    assert a.get("best").manifest.model_id == first  # not taken over yet
    a.share()
    assert ids(a) == ids(b) == {first, second, third}
    for registry in (a, b):
        assert registry.get("best").manifest.model_id == third  # what is shared wins
        assert registry.get("other").manifest.model_id == third
        assert registry.get(second).archived_at


def test_a_change_takes_an_existing_folder_over_first(place: Place) -> None:
    alone = Registry(place.folder / "a", TRUST)
    model_id = register_bytes(alone, "first", KEY)
    alone.point("best", model_id)
    place.replica("a").point("next", model_id)
    assert place.replica("b").get(model_id).aliases == ("best", "next")


def test_without_the_store_the_folder_is_the_original_again(place: Place) -> None:
    a = place.replica("a")
    model_id = register_bytes(a, "first", KEY)
    a.point("best", model_id)
    alone = Registry(a.folder, TRUST)
    assert alone.get("best").manifest.model_id == model_id
    alone.point("alone", model_id)
    b = place.replica("b")
    b.point("best", None)
    again = place.replica("a")
    again.share()
    for registry in (again, b):
        assert registry.get(model_id).aliases == ("alone", "best")


def test_a_lost_index_is_written_again_from_a_copy(files: Place) -> None:
    a, b = files.replica("a"), files.replica("b")
    model_id = register_bytes(a, "first", KEY)
    a.point("best", model_id)
    assert ids(b) == {model_id}
    (files.store / INDEX).unlink()
    assert b.get("best").manifest.model_id == model_id
    b.share()
    c = files.replica("c")
    assert c.get("best").manifest.model_id == model_id
    assert c.read(model_id, "mevt") == b"first mevt"


def test_a_damaged_index_is_named_and_the_folder_is_read(files: Place) -> None:
    a = files.replica("a")
    model_id = register_bytes(a, "first", KEY)
    (files.store / INDEX).write_bytes(b"[]")
    with pytest.raises(DamagedObjectError, match=INDEX):
        a.check_shared()
    assert ids(a) == {model_id}
    with pytest.raises(DamagedObjectError):
        a.point("best", model_id)


def test_damaged_files_are_refused_by_name(files: Place) -> None:
    a = files.replica("a")
    model_id = register_bytes(a, "first", KEY)
    manifest = a.get(model_id).manifest
    sound = register_bytes(a, "second", KEY)
    index = orjson.loads((files.store / INDEX).read_bytes())
    for digest in (str(manifest.mevt_sha256), index["models"][model_id]["manifest"]):
        path = files.store / "models" / digest
        path.write_bytes(path.read_bytes() + b" ")
    b = files.replica("b")
    listing = b.list()
    assert [entry.manifest.model_id for entry in listing.entries] == [sound]
    assert listing.refused[model_id].startswith("object_damaged: ")
    for refused in (lambda: b.get(model_id), b.check_shared):
        with pytest.raises(DamagedObjectError, match="restore it"):
            refused()
    assert a.read(model_id, "mevt") == b"first mevt"  # its own copy


def test_a_damaged_model_file_is_not_served(files: Place) -> None:
    a, b = files.replica("a"), files.replica("b")
    model_id = register_bytes(a, "first", KEY)
    digest = str(a.get(model_id).manifest.mevt_sha256)
    (files.store / "models" / digest).write_bytes(b"firsT mevt")
    with pytest.raises(DamagedObjectError, match=digest):
        b.agents_file(model_id, f"{digest}.mevt")
    assert not (b.folder / f"{digest}.mevt").exists()


def test_names_in_the_index_cannot_leave_the_folder(files: Place) -> None:
    a = files.replica("a")
    model_id = register_bytes(a, "first", KEY)
    index = orjson.loads((files.store / INDEX).read_bytes())
    index["models"]["../evil"] = index["models"][model_id]
    (files.store / INDEX).write_bytes(orjson.dumps(index))
    b = files.replica("b")
    assert ids(b) == {model_id}
    assert not list(files.folder.rglob("evil*"))
    with pytest.raises(UnknownModelError):
        b.get("../evil")


class Notary:
    """A signer with a retired key set."""

    def __init__(self, key: SigningKey, *retired: Retired) -> None:
        self._key = key
        self._retired = retired

    def model_signer(self) -> SigningKey:
        return self._key

    def retired(self) -> tuple[Retired, ...]:
        return self._retired


def test_a_manifest_signed_again_reaches_other_replicas(place: Place, original: Made) -> None:
    content = {form: original.path(form).read_bytes() for form in ("ubj", "mevt", "so")}
    place.replica("a").add(original.manifest, content, KEY)
    key, old = SigningKey("second", bytes([9]) * 32), TRUST.key_set
    trust = TrustStore(KeySet(epoch=2, keys=[key.trusted_for(COMMAND)]))
    later_ns = now_ns() + 60_000_000_000
    b, c = place.replica("b", trust), place.replica("c", trust)
    assert ids(b) == ids(c) == set()
    notary = Notary(key, Retired(key_set=old, until_ns=later_ns))
    assert c.sign(original.manifest.model_id, notary).manifest == original.manifest
    assert b.get(original.manifest.model_id).manifest == original.manifest


def test_a_manifest_stored_after_its_key_was_replaced_is_not_signed_again(
    place: Place, original: Made
) -> None:
    until_ns = now_ns() - 60_000_000_000
    place.replica("a").add(original.manifest, {"ubj": original.path("ubj").read_bytes()}, KEY)
    key = SigningKey("second", bytes([9]) * 32)
    trust = TrustStore(KeySet(epoch=2, keys=[key.trusted_for(COMMAND)]))
    notary = Notary(key, Retired(key_set=TRUST.key_set, until_ns=until_ns))
    with pytest.raises(LateManifestError):
        place.replica("b", trust).sign(original.manifest.model_id, notary)


def test_the_age_of_a_manifest_is_not_that_of_another_object(files: Place, original: Made) -> None:
    a = files.replica("a")
    # Too large for a manifest: replicas keep the one they have.
    old = a.get(register_bytes(a, "x" * (MAX_BYTES + 1), KEY)).manifest
    until_ns = now_ns()
    content = {form: original.path(form).read_bytes() for form in ("ubj", "mevt", "so")}
    a.add(original.manifest, content, KEY)
    key = SigningKey("second", bytes([9]) * 32)
    b = files.replica("b", TrustStore(KeySet(epoch=2, keys=[key.trusted_for(COMMAND)])))
    assert ids(b) == set()
    index = orjson.loads((files.store / INDEX).read_bytes())
    index["models"][original.manifest.model_id]["manifest"] = old.digest("mevt")
    (files.store / INDEX).write_bytes(orjson.dumps(index))
    notary = Notary(key, Retired(key_set=TRUST.key_set, until_ns=until_ns))
    with pytest.raises(BadManifestError, match="is not the one that the object store names"):
        b.sign(original.manifest.model_id, notary)
