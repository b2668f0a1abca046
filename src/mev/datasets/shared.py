"""Finished exports that replicas share in an object store.

``exports/<id>/export.json`` describes an export and is written last; the files are beside it, by
digest. Another replica adds the export to its own jobs when it is asked for it, and copies each
file when it is needed.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from mev.core.clock import now_ns
from mev.core.errors import MevError
from mev.core.files import write_atomically
from mev.datasets import manifest
from mev.jobs.context import Context
from mev.jobs.model import Job, JobState
from mev.store.object_errors import DamagedObjectError, DocumentChangedError
from mev.store.objects import ObjectStore

LOG = logging.getLogger(__name__)
_ROOT = "exports"
_DOCUMENT = "export.json"
_STATE = "state.json"
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"part-[0-9]{5,9}\.[a-z0-9]{1,16}(\.[a-z0-9]{1,8})?")
_MAX_MANIFEST_BYTES = 16 << 20
_NS = 1_000_000_000
Pinned = Callable[[], Mapping[str, str]]
"""Returns the ids of exports that are kept beyond their expiry, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedExport:
    """An export in the store: its job, its query as JSON and its manifest file."""

    job: Job
    spec: Mapping[str, Any]
    manifest: bytes

    def write_manifest(self, output: Path) -> None:
        """Write the manifest to the output of the job, for :meth:`SharedExports.fetch`."""
        write_atomically(output / manifest.NAME, self.manifest)


class SharedExports:
    """The exports in `objects`; those that are `pinned` do not expire."""

    def __init__(self, objects: ObjectStore, pinned: Pinned, *, expires_s: float) -> None:
        self._objects = objects
        self._pinned = pinned
        self._expires_s = expires_s

    def add(self, context: Context) -> None:
        """Store the finished export of a job, and remove expired ones.

        If the store does not answer, the export is on this machine only.
        """
        try:
            self._store(context)
            self._expire()
        except MevError as error:
            context.log.warning("the export is on this machine only: %s", error.detail)
            LOG.warning(
                "export %s is not shared: %s: %s",
                context.folder.name,
                error.code,
                error.detail,
                extra={"action": "export_not_shared"},
            )

    def find(self, export_id: str) -> SharedExport | None:
        """Return an export, or None if there is none or it has expired.

        :raises MevError: when it cannot be read.
        """
        if not _ID.fullmatch(export_id):
            return None
        folder = f"{_ROOT}/{export_id}"
        found = self._objects.document(f"{folder}/{_DOCUMENT}")
        if found is None:
            return None
        job, spec, digest = self._parse(export_id, found.content)
        if job.expires_ns < now_ns() and export_id not in self._pinned():
            return None
        content = self._objects.get(folder, digest, max_bytes=_MAX_MANIFEST_BYTES)
        if not all(
            _PART.fullmatch(part["file"]) and _DIGEST.fullmatch(part["sha256"])
            for part in orjson.loads(content)["parts"]
        ):
            raise self._damaged(export_id)
        return SharedExport(job=job, spec=spec, manifest=content)

    def fetch(self, export_id: str, output: Path, name: str) -> None:
        """Copy a file of an export to `output`, which has the manifest, unless it is there.

        :raises MevError: when it cannot be copied, or does not have its digest.
        """
        digests = {part["file"]: part["sha256"] for part in manifest.read(output)["parts"]}
        if name in digests and not (output / name).exists():
            self._objects.get_file(f"{_ROOT}/{export_id}", digests[name], output / name)

    def fetch_all(self, export_id: str, output: Path, check: Callable[[], None]) -> None:
        """Copy all files of an export; `check` raises if that is to stop.

        :raises MevError: when a file cannot be copied, or does not have its digest.
        """
        for part in manifest.read(output)["parts"]:
            check()
            self.fetch(export_id, output, part["file"])

    def remove(self, export_id: str) -> None:
        """Remove an export, its description first.

        :raises MevError: when the store does not answer.
        """
        if _ID.fullmatch(export_id):
            self._objects.remove(f"{_ROOT}/{export_id}", _DOCUMENT)

    def _store(self, context: Context) -> None:
        export_id, folder = context.folder.name, f"{_ROOT}/{context.folder.name}"
        content = (context.output / manifest.NAME).read_bytes()
        for part in orjson.loads(content)["parts"]:
            context.check()
            self._objects.put_file(folder, context.output / part["file"], part["sha256"])
        running = Job(**orjson.loads((context.folder / _STATE).read_bytes()))
        now = now_ns()
        job = replace(
            running,
            state=JobState.SUCCEEDED,
            ended_ns=now,
            expires_ns=now + int(self._expires_s * _NS),
        )
        description = {
            "format_version": 1,
            "job": asdict(job),
            "spec": dict(context.spec),
            "manifest": self._objects.put(folder, content),
        }
        try:
            self._objects.replace(f"{folder}/{_DOCUMENT}", orjson.dumps(description), None)
        except DocumentChangedError:
            LOG.info("export %s is shared already", export_id, extra={"action": "export_shared"})

    def _expire(self) -> None:
        pinned = self._pinned()
        for export_id in self._objects.folders(_ROOT):
            found = self._objects.document(f"{_ROOT}/{export_id}/{_DOCUMENT}")
            if found is None or not _ID.fullmatch(export_id) or export_id in pinned:
                continue
            job, _, _ = self._parse(export_id, found.content)
            if job.expires_ns < now_ns():
                self.remove(export_id)

    def _parse(self, export_id: str, content: bytes) -> tuple[Job, Mapping[str, Any], str]:
        try:
            found: dict[str, Any] = orjson.loads(content)
            job = Job(**{**found["job"], "state": JobState(found["job"]["state"])})
            spec, digest = dict(found["spec"]), str(found["manifest"])
        except (ValueError, TypeError, KeyError):
            raise self._damaged(export_id) from None
        if job.id != export_id or job.state is not JobState.SUCCEEDED:
            raise self._damaged(export_id)
        if not _DIGEST.fullmatch(digest):
            raise self._damaged(export_id)
        return job, spec, digest

    def _damaged(self, export_id: str) -> DamagedObjectError:
        key = f"{_ROOT}/{export_id}/{_DOCUMENT}"
        return DamagedObjectError(
            f"{key} in {self._objects.place} does not describe an export; export again", key=key
        )
