"""Tests of the object store against an S3 server."""

import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mev.core.errors import MevError
from mev.registry.registry import Registry
from mev.settings import load
from mev.store.object_errors import (
    BucketMissingError,
    DamagedObjectError,
    DocumentChangedError,
    MissingObjectError,
    ObjectStoreDeniedError,
    ObjectStoreUnavailableError,
)
from mev.store.objects import ObjectStore, open_object_store
from tests.services.models import register_bytes
from tests.services.s3 import RealS3
from tests.services.service import free_port
from tests.unit.registry.samples import KEY, TRUST

CONTENT = b"a model"


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


def opened(server: RealS3, prefix: str, **changed: str) -> ObjectStore:
    environment = server.environment(prefix) | changed
    objects = open_object_store(load(**{name.lower(): text for name, text in environment.items()}))
    assert objects is not None
    return objects


def test_objects_and_documents(real_s3: RealS3, prefix: str) -> None:
    objects = opened(real_s3, prefix)
    digest = objects.put("models", CONTENT)
    assert objects.put("models", CONTENT) == digest
    assert objects.get("models", digest, max_bytes=100) == CONTENT
    assert (real_s3.objects(prefix) / "models" / digest).read_bytes() == CONTENT
    with pytest.raises(MissingObjectError):
        objects.get("models", "0" * 64, max_bytes=100)
    (real_s3.objects(prefix) / "models" / digest).write_bytes(b"b model")
    with pytest.raises(DamagedObjectError):
        objects.get("models", digest, max_bytes=100)
    assert objects.document("index.json") is None
    first = objects.replace("index.json", b"1", None)
    assert objects.document("index.json", first) is first
    second = objects.replace("index.json", b"2", first)
    for known in (first, None):
        with pytest.raises(DocumentChangedError):
            objects.replace("index.json", b"3", known)
    assert objects.document("index.json", first) == second


@pytest.mark.parametrize(
    ("changed", "kind", "remedy"),
    [
        ({"OBJECT_STORE": "s3://none"}, BucketMissingError, "create it, or correct OBJECT_STORE"),
        ({"AWS_SECRET_ACCESS_KEY": "x"}, ObjectStoreDeniedError, "check AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "x"}, ObjectStoreDeniedError, "check AWS_ACCESS_KEY_ID"),
        (
            {"AWS_ENDPOINT_URL": "http://nowhere.invalid:9000"},
            ObjectStoreUnavailableError,
            "check AWS_ENDPOINT_URL",
        ),
    ],
)
def test_each_failure_has_a_name_and_a_remedy(
    real_s3: RealS3, prefix: str, changed: Mapping[str, str], kind: type[MevError], remedy: str
) -> None:
    objects = opened(real_s3, prefix, **changed)
    calls: list[Callable[[], Any]] = [
        lambda: objects.put("models", CONTENT),
        lambda: objects.get("models", "0" * 64, max_bytes=100),
        lambda: objects.document("index.json"),
        lambda: objects.replace("index.json", b"1", None),
    ]
    for call in calls:
        with pytest.raises(kind, match=remedy):
            call()


def test_a_server_that_is_away_is_named_and_used_again_when_it_is_back(
    real_s3: RealS3, prefix: str, tmp_path: Path
) -> None:
    a, b = (
        Registry(tmp_path / name, TRUST, objects=opened(real_s3, prefix)) for name in ("a", "b")
    )
    first = register_bytes(a, "first", KEY)
    assert b.get(first).manifest.model_id == first
    real_s3.stop()
    second = register_bytes(a, "second", KEY)
    assert b.get(first).manifest.model_id == first
    with pytest.raises(ObjectStoreUnavailableError, match="Connection refused"):
        b.point("best", first)
    real_s3.start()
    a.share()
    b.share()
    b.point("best", first)
    assert b.get(second).manifest.model_id == second
    assert a.get("best").manifest.model_id == first
    shutil.rmtree(a.folder)
    assert b.read(second, "mevt") == b"second mevt"


def test_a_port_without_a_server_is_named(real_s3: RealS3, prefix: str) -> None:
    objects = opened(real_s3, prefix, AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ObjectStoreUnavailableError, match="does not answer: Connection refused"):
        objects.document("index.json")
