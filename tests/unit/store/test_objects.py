import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore

from mev.core.errors import MevError
from mev.core.files import DiskFullError
from mev.settings import InvalidSettingsError, load
from mev.store.object_errors import (
    BucketMissingError,
    DamagedObjectError,
    DocumentChangedError,
    MissingObjectError,
    ObjectStoreDeniedError,
    ObjectStoreUnavailableError,
)
from mev.store.objects import ObjectStore, StoredDocument, open_object_store
from tests.services.disk import fill, small_disk

CONTENT = b"a model"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(params=["memory", "file"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "memory":
        store = MemoryStore()
        return ObjectStore("memory://", lambda: store)
    return local(tmp_path)


def local(folder: Path) -> ObjectStore:
    return ObjectStore(f"file://{folder}", lambda: LocalStore(folder), folder)


def failing(error: Exception) -> ObjectStore:
    def fail() -> MemoryStore:
        raise error

    return ObjectStore("s3://bucket", fail)


def test_an_object_is_stored_once_and_read_by_its_digest(objects: ObjectStore) -> None:
    assert objects.put("models", CONTENT) == objects.put("models", CONTENT) == DIGEST
    assert objects.get("models", DIGEST, max_bytes=100) == CONTENT
    with pytest.raises(MissingObjectError) as caught:
        objects.get("models", "0" * 64, max_bytes=100)
    assert caught.value.code == "object_missing"


def test_a_larger_object_than_expected_is_refused_unread(objects: ObjectStore) -> None:
    objects.put("models", CONTENT)
    with pytest.raises(DamagedObjectError, match="7 bytes"):
        objects.get("models", DIGEST, max_bytes=6)


def test_a_changed_object_is_refused(tmp_path: Path) -> None:
    objects = local(tmp_path)
    objects.put("models", CONTENT)
    (tmp_path / "models" / DIGEST).write_bytes(b"b model")
    with pytest.raises(DamagedObjectError, match="restore it from a copy") as caught:
        objects.get("models", DIGEST, max_bytes=100)
    assert caught.value.code == "object_damaged"


def test_an_object_cut_by_a_crash_is_stored_again(tmp_path: Path) -> None:
    objects = local(tmp_path)
    objects.put("models", CONTENT)
    (tmp_path / "models" / DIGEST).write_bytes(b"")
    objects.put("models", CONTENT)
    assert objects.get("models", DIGEST, max_bytes=100) == CONTENT


def test_a_document_is_replaced_only_by_who_read_its_newest_version(objects: ObjectStore) -> None:
    assert objects.document("index.json") is None
    first = objects.replace("index.json", b"1", None)
    assert objects.document("index.json", first) is first
    second = objects.replace("index.json", b"2", first)
    for known in (first, None):
        with pytest.raises(DocumentChangedError):
            objects.replace("index.json", b"3", known)
    assert objects.document("index.json", first) == second == StoredDocument(b"2", second.version)


def test_no_change_of_concurrent_writers_is_lost(objects: ObjectStore) -> None:
    def add(_: int) -> None:
        while True:
            found = objects.document("count")
            try:
                objects.replace(
                    "count", str(int(found.content if found else 0) + 1).encode(), found
                )
            except DocumentChangedError:
                continue
            return

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(add, range(40)))
    found = objects.document("count")
    assert found is not None
    assert found.content == b"40"


def test_a_folder_that_is_not_mounted_is_not_created(tmp_path: Path) -> None:
    objects = local(tmp_path / "away")
    with pytest.raises(BucketMissingError, match="mount or create it") as caught:
        objects.put("models", CONTENT)
    assert caught.value.code == "object_store_bucket_missing"
    assert not (tmp_path / "away").exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        objects = local(disk)
        fill(disk, leave_bytes=1 << 16)
        with pytest.raises(DiskFullError, match="free space") as caught:
            objects.put("models", bytes(1 << 19))
    assert caught.value.code == "disk_full"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OSError(28, "No space left on device"), DiskFullError, "is full"),
        (ValueError("500: <Code>XMinioStorageFull</Code>"), DiskFullError, "is full"),
        (ValueError("403: <Code>RequestTimeTooSkewed</Code>"), ObjectStoreDeniedError, "clock"),
        (ValueError("400: <Code>ExpiredToken</Code>"), ObjectStoreDeniedError, "ExpiredToken"),
        (ValueError("<Code>AuthorizationHeaderMalformed</Code>"), ObjectStoreDeniedError, "REGION"),
        (PermissionError(13, "Permission denied"), ObjectStoreDeniedError, "AWS_ACCESS_KEY_ID"),
        (ValueError("PUT http://169.254.169.254/latest"), ObjectStoreDeniedError, "no credentials"),
        (ValueError('sent: message: "Connection refused"'), ObjectStoreUnavailableError, "refused"),
    ],
)
def test_a_failure_has_a_name_and_a_remedy(
    error: Exception, kind: type[MevError], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        failing(error).put("models", CONTENT)
    assert "s3://bucket" in caught.value.detail


def test_a_file_counts_from_its_last_change_on_disk(tmp_path: Path) -> None:
    objects = local(tmp_path)
    objects.put("models", CONTENT)
    path = tmp_path / "models" / DIGEST
    assert objects.stored_ns("models", DIGEST) == path.stat().st_ctime_ns
    memory = MemoryStore()
    other = ObjectStore("memory://", lambda: memory)
    other.put("models", CONTENT)
    assert other.stored_ns("models", DIGEST) > path.stat().st_ctime_ns - 1_000_000_000


def test_settings_name_the_store(tmp_path: Path) -> None:
    assert open_object_store(load()) is None
    objects = open_object_store(load(object_store=f"file://{tmp_path}"))
    assert objects is not None
    objects.put("models", CONTENT)
    assert (tmp_path / "models" / DIGEST).read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["s3:///prefix", "file:///", "gs://bucket", "bucket", "file://a"])
def test_a_place_of_another_kind_is_refused(place: str) -> None:
    with pytest.raises(InvalidSettingsError, match="OBJECT_STORE: expected s3://bucket/prefix"):
        load(object_store=place)


def test_files_are_stored_by_their_digest_and_removed_with_their_folder(
    objects: ObjectStore, tmp_path: Path
) -> None:
    path, copy = tmp_path / "part", tmp_path / "copy"
    path.write_bytes(bytes(6 << 20))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for _ in range(2):
        objects.put_file("exports/1", path, digest)
    objects.replace("exports/1/export.json", b"{}", None)
    objects.put("exports/2", CONTENT)
    assert objects.folders("exports") == ["1", "2"]
    objects.get_file("exports/1", digest, copy)
    assert copy.read_bytes() == path.read_bytes()
    objects.remove("exports/1", "export.json")
    assert objects.document("exports/1/export.json") is None
    with pytest.raises(MissingObjectError):
        objects.get_file("exports/1", digest, copy)
    assert objects.get("exports/2", DIGEST, max_bytes=100) == CONTENT


def test_a_file_that_does_not_fit_here_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    objects = local(tmp_path / "store")
    digest = objects.put("exports/1", bytes(1 << 20))
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        fill(disk, leave_bytes=1 << 16)
        with pytest.raises(DiskFullError, match=str(disk)):
            objects.get_file("exports/1", digest, disk / "part")
        assert [each.name for each in disk.iterdir()] == ["ballast"]
