"""Cache of verified manifests, so that listing hundreds of models stays cheap.

An entry is valid while the file's identity and change time stay the same (ctime moves with every
write, rename and chmod), and while the same key set with the same valid keys is active. Files that
changed within the clock's resolution are not cached.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from mev.core.clock import Clock
from mev.crypto.trust import TrustStore
from mev.scoring.errors import ModelError
from mev.scoring.load import read_manifest
from mev.scoring.manifest import Manifest
from mev.wire.pb.envelope_pb2 import KeySet

MANIFEST = ".manifest.json"
_SETTLED_NS = 1_000_000_000
_Identity = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    identity: _Identity | None
    found: Manifest | ModelError


class Manifests:
    """Verified manifests in `folder`, cached; thread-safe."""

    def __init__(self, folder: Path, trust: TrustStore, clock: Clock) -> None:
        self._folder = folder
        self._trust = trust
        self._clock = clock
        self._under: tuple[KeySet, frozenset[str]] | None = None
        self._seen: dict[str, _Seen] = {}

    def read(self) -> dict[str, Manifest | ModelError]:
        """Return for each model its manifest, or the error that refuses it."""
        under = self._in_force()
        known = (
            self._seen
            if self._under is not None and self._under[0] is under[0] and self._under[1] == under[1]
            else {}
        )
        seen: dict[str, _Seen] = {}
        for model_id, identity in self._there():
            before = known.get(model_id)
            seen[model_id] = (
                before
                if before is not None and before.identity == identity
                else self._look(model_id, identity)
            )
        self._under, self._seen = under, seen
        return {model_id: each.found for model_id, each in seen.items()}

    def _in_force(self) -> tuple[KeySet, frozenset[str]]:
        """Return the key set and the ids of its currently valid keys."""
        key_set, now = self._trust.key_set, self._clock()
        valid = (
            key.key_id
            for key in key_set.keys
            if key.not_before_ns <= now and not 0 < key.not_after_ns < now
        )
        return key_set, frozenset(valid)

    def _there(self) -> list[tuple[str, _Identity]]:
        try:
            with os.scandir(self._folder) as files:
                # A leading dot marks a file that is being written.
                named = [
                    file
                    for file in files
                    if file.name.endswith(MANIFEST) and not file.name.startswith(".")
                ]
        except FileNotFoundError:
            return []
        return [(file.name.removesuffix(MANIFEST), _identity(file)) for file in named]

    def _look(self, model_id: str, identity: _Identity) -> _Seen:
        remembered = identity if self._clock() - identity[-1] > _SETTLED_NS else None
        try:
            found = read_manifest(self._folder, model_id, self._trust, at_ns=self._clock())
            return _Seen(remembered, found)
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
