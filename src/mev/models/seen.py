"""Manifests that were read and whose signatures were checked, so that a list of hundreds does not check them all again.

What was found counts as long as the file is the same one, untouched (its change time moves with every write, rename of another into its
place, or change of its rights), and the same key set is in force with the same of its keys valid. A clock has steps: of a file that
changed a moment ago nothing is remembered.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from mev.core.clock import now_ns
from mev.crypto.trust import TrustStore
from mev.predict.errors import ModelError
from mev.predict.load import read_manifest
from mev.predict.manifest import Manifest
from mev.wire.pb.envelope_pb2 import KeySet

MANIFEST = ".manifest.json"
_SETTLED_NS = 1_000_000_000
_Identity = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    identity: _Identity | None
    found: Manifest | ModelError


class Manifests:
    """The manifests in `folder`, each with what `trust` says of it. Any thread may call."""

    def __init__(self, folder: Path, trust: TrustStore) -> None:
        self._folder = folder
        self._trust = trust
        self._under: tuple[KeySet, frozenset[str]] | None = None
        self._seen: dict[str, _Seen] = {}

    def read(self) -> dict[str, Manifest | ModelError]:
        """Return the manifest of each model, or why it is refused."""
        under = self._in_force()
        known = self._seen if self._under is not None and self._under[0] is under[0] and self._under[1] == under[1] else {}
        seen: dict[str, _Seen] = {}
        for model_id, identity in self._there():
            before = known.get(model_id)
            seen[model_id] = before if before is not None and before.identity == identity else self._look(model_id, identity)
        self._under, self._seen = under, seen
        return {model_id: each.found for model_id, each in seen.items()}

    def _in_force(self) -> tuple[KeySet, frozenset[str]]:
        """Return the key set and those of its keys that are within their times."""
        key_set, now = self._trust.key_set, now_ns()
        valid = (key.key_id for key in key_set.keys if key.not_before_ns <= now and not 0 < key.not_after_ns < now)
        return key_set, frozenset(valid)

    def _there(self) -> list[tuple[str, _Identity]]:
        try:
            with os.scandir(self._folder) as files:
                # Those with a dot before the name are being written.
                named = [file for file in files if file.name.endswith(MANIFEST) and not file.name.startswith(".")]
        except FileNotFoundError:
            return []
        return [(file.name.removesuffix(MANIFEST), _identity(file)) for file in named]

    def _look(self, model_id: str, identity: _Identity) -> _Seen:
        remembered = identity if now_ns() - identity[-1] > _SETTLED_NS else None
        try:
            return _Seen(remembered, read_manifest(self._folder, model_id, self._trust))
        except ModelError as error:
            return _Seen(remembered, error)


def _identity(file: os.DirEntry[str]) -> _Identity:
    status = file.stat(follow_symlinks=False)
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
