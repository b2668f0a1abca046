"""The object store: objects named by their SHA-256, and small documents that change.

An object is created only if it is absent, and its digest is checked at every read. A document is
replaced only if it is still the version that was read. Calls block.
"""

import fcntl
import hashlib
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    PreconditionError,
)
from obstore.store import LocalStore, MemoryStore, S3Store

from mev.core.files import disk_full
from mev.settings import Settings
from mev.store.object_errors import (
    BucketMissingError,
    DamagedObjectError,
    DocumentChangedError,
    MissingObjectError,
    ObjectStoreUnavailableError,
    is_bucket_missing,
    named,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig

Store = S3Store | LocalStore | MemoryStore
T = TypeVar("T")
_TRANSFER_S = 600
_RETRIES = 2
_LOCK = ".lock"
_MAX_DOCUMENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document and its version."""

    content: bytes
    version: str


class ObjectStore:
    """The object store at `place`, a URL; `open_store` opens it at the first call.

    `folder` is the folder of a `file://` store.
    """

    def __init__(
        self, place: str, open_store: Callable[[], Store], folder: Path | None = None
    ) -> None:
        self.place = place
        self._open = open_store
        self._folder = folder

    @cached_property
    def _store(self) -> Store:
        return self._open()

    def put(self, folder: str, content: bytes) -> str:
        """Store an object unless it exists, and return its SHA-256.

        :raises MevError: when it cannot be stored.
        """
        digest = hashlib.sha256(content).hexdigest()
        key = f"{folder}/{digest}"

        def create() -> None:
            try:
                obstore.put(self._store, key, content, mode="create")
            except AlreadyExistsError:
                # a crash may have cut the file of a `file://` store
                if obstore.head(self._store, key)["size"] != len(content):
                    obstore.put(self._store, key, content, use_multipart=False)

        self._do(create)
        return digest

    def get(self, folder: str, sha256: str, *, max_bytes: int) -> bytes:
        """Return an object.

        :raises DamagedObjectError: when it does not have its digest.
        :raises MissingObjectError: when it does not exist.
        """
        key = f"{folder}/{sha256}"

        def read() -> bytes:
            found = obstore.get(self._store, key)
            if found.meta["size"] > max_bytes:
                raise DamagedObjectError(self._damaged(key, f"{found.meta['size']} bytes"), key=key)
            return bytes(found.bytes())

        content = self._found(key, read)
        if (digest := hashlib.sha256(content).hexdigest()) != sha256:
            raise DamagedObjectError(self._damaged(key, f"SHA-256 {digest}"), key=key)
        return content

    def put_file(self, folder: str, path: Path, sha256: str) -> None:
        """Store the file `path`, whose digest is `sha256`, unless it is stored already.

        :raises MevError: when it cannot be stored.
        """
        key, size = f"{folder}/{sha256}", path.stat().st_size

        def upload() -> None:
            try:
                if obstore.head(self._store, key)["size"] == size:
                    return
            except FileNotFoundError:
                pass
            obstore.put(self._store, key, path)

        self._do(upload)

    def get_file(self, folder: str, sha256: str, target: Path) -> None:
        """Write an object to the file `target`, complete or not at all.

        :raises DamagedObjectError: when it does not have its digest.
        :raises MissingObjectError: when it does not exist.
        :raises DiskFullError: when the disk of `target` is full.
        """
        key = f"{folder}/{sha256}"
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            digest = self._found(key, lambda: _download(self._store, key, temporary))
            if digest != sha256:
                raise DamagedObjectError(self._damaged(key, f"SHA-256 {digest}"), key=key)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in `folder`.

        :raises MevError: when the store cannot be read.
        """
        found = self._do(lambda: obstore.list_with_delimiter(self._store, folder))
        return sorted(prefix.rpartition("/")[2] for prefix in found["common_prefixes"])

    def remove(self, folder: str, first: str) -> None:
        """Remove the document `first` of `folder`, then everything else in it.

        :raises MevError: when the store cannot be read or written.
        """

        def delete() -> None:
            with suppress(FileNotFoundError):
                obstore.delete(self._store, f"{folder}/{first}")
            for page in obstore.list(self._store, folder):
                with suppress(FileNotFoundError):
                    obstore.delete(self._store, [found["path"] for found in page])

        self._do(delete)

    def stored_ns(self, folder: str, sha256: str) -> int:
        """Return the latest time at which an object may have been written.

        :raises MissingObjectError: when it does not exist.
        """
        key = f"{folder}/{sha256}"
        if self._folder is not None:
            path = self._folder / key
            return self._found(key, lambda: path.lstat().st_ctime_ns)
        written = self._found(key, lambda: obstore.head(self._store, key)["last_modified"])
        return (int(written.timestamp()) + 1) * 1_000_000_000  # S3 gives whole seconds

    def document(self, name: str, known: StoredDocument | None = None) -> StoredDocument | None:
        """Return a document, `known` if that is its version, or None if there is none.

        :raises MevError: when the store cannot be read.
        """

        def read() -> StoredDocument | None:
            try:
                found = obstore.get(
                    self._store, name, options={"if_none_match": known.version} if known else {}
                )
            except NotModifiedError:
                return known
            except FileNotFoundError as error:
                if is_bucket_missing(error):
                    raise
                return None
            if found.meta["size"] > _MAX_DOCUMENT_BYTES:
                raise DamagedObjectError(
                    self._damaged(name, f"{found.meta['size']} bytes"), key=name
                )
            return StoredDocument(bytes(found.bytes()), found.meta["e_tag"] or "")

        return self._do(read)

    def replace(self, name: str, content: bytes, known: StoredDocument | None) -> StoredDocument:
        """Replace the document `known`, or create it, and return the new one.

        :raises DocumentChangedError: when another process replaced or created it meanwhile.
        """

        def write() -> StoredDocument:
            try:
                if self._folder is None:
                    version = obstore.put(
                        self._store,
                        name,
                        content,
                        mode={"e_tag": known.version} if known else "create",
                    )["e_tag"]
                else:
                    version = self._replace_file(name, content, known)
            except (AlreadyExistsError, PreconditionError):
                raise DocumentChangedError(
                    f"{name} of {self.place} was changed by another process; try again"
                ) from None
            return StoredDocument(content, version or "")

        return self._do(write)

    def _replace_file(self, name: str, content: bytes, known: StoredDocument | None) -> str | None:
        """Replace a document under a lock: the file system has no conditional replacement."""
        with self._locked():
            found = self.document(name)
            if (found and found.version) != (known and known.version):
                raise PreconditionError(name)
            return obstore.put(self._store, name, content, use_multipart=False)["e_tag"]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        assert self._folder is not None  # noqa: S101 - for the type checker
        descriptor = os.open(self._folder / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _found(self, key: str, work: Callable[[], T]) -> T:
        try:
            return self._do(work)
        except FileNotFoundError:
            raise MissingObjectError(
                f"{key} is not in {self.place} any more; restore it from a copy or an older"
                " version of the bucket",
                key=key,
            ) from None

    def _do(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, or raise the named error for its failure."""
        if self._folder is not None and not self._folder.is_dir():
            # creating it would hide that a disk is not mounted
            raise BucketMissingError(
                f"{self._folder} (OBJECT_STORE) is not a folder; mount or create it"
            )
        try:
            return work()
        except (BaseError, FileNotFoundError, NotImplementedError, ValueError, OSError) as error:
            if (known := named(error, self.place)) is not None:
                raise known from None
            raise

    def _damaged(self, key: str, found: str) -> str:
        return (
            f"{key} in {self.place} has {found}: it was changed or cut; restore it from a copy or"
            " an older version of the bucket"
        )


def _download(store: Store, key: str, target: Path) -> str:
    """Write an object to `target` and return the digest of what was written."""
    digest = hashlib.sha256()
    stream = obstore.get(store, key).stream()
    try:
        with target.open("xb") as file:
            for chunk in stream:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if (full := disk_full(error, target)) is not None:
            raise full from None
        raise
    return digest.hexdigest()


def open_object_store(settings: Settings) -> ObjectStore | None:
    """Return the store at OBJECT_STORE, or None if it is not set."""
    if settings.object_store is None:
        return None
    place = urlsplit(settings.object_store)
    if place.scheme == "file":
        folder = Path(unquote(place.path))
        return ObjectStore(settings.object_store, lambda: LocalStore(folder), folder)
    return ObjectStore(settings.object_store, lambda: _s3(settings))


def _s3(settings: Settings) -> S3Store:
    place = urlsplit(settings.object_store or "")
    secret = settings.aws_secret_access_key
    given = {
        "endpoint": settings.aws_endpoint_url,
        "region": settings.aws_region,
        "access_key_id": settings.aws_access_key_id,
        "secret_access_key": secret.get_secret_value() if secret else None,
    }
    timeout = timedelta(seconds=settings.service_timeout_s)
    options: ClientConfig = {
        "allow_http": (settings.aws_endpoint_url or "").startswith("http://"),
        "connect_timeout": timeout,
        "read_timeout": timeout,
        "timeout": timedelta(seconds=_TRANSFER_S),
    }
    if settings.object_store_tls_ca_file is not None:
        options["root_certificate"] = _authority(settings.object_store_tls_ca_file)
    return S3Store(
        place.netloc,
        prefix=place.path.strip("/") or None,
        config={name: value for name, value in given.items() if value},  # type: ignore[arg-type]
        client_options=options,
        retry_config={"max_retries": _RETRIES, "retry_timeout": timeout},
    )


def _authority(path: Path) -> bytes:
    """Return the certificates in a PEM file.

    :raises ObjectStoreUnavailableError: when it cannot be read, or has none.
    """
    try:
        content = path.read_bytes()
        ssl.create_default_context(cadata=content.decode())
    except (OSError, ValueError) as error:
        raise ObjectStoreUnavailableError(
            f"{path} (OBJECT_STORE_TLS_CA_FILE) has no certificates: {error}"
        ) from None
    return content
