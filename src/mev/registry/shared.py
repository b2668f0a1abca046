"""Models that replicas share in an object store; the registry's folder holds copies of them.

All objects are immutable but one: the document ``models.json`` names for each model the digests of
its manifest and plots, and has the aliases. It is replaced only if it is still the version that was
read, so any number of replicas may write. While the store does not answer, the folder is read as it
was.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import orjson

from mev.core.errors import ConflictError, MevError, UnavailableError
from mev.registry.folder import MAX_PLOT_BYTES, MODEL_ID, PLOT, RegistryFolder, RegistryState
from mev.registry.manifest_cache import MANIFEST
from mev.scoring import model_files
from mev.scoring.errors import BadManifestError, ModelError
from mev.scoring.manifest import FORMS, MAX_BYTES, Manifest
from mev.store.object_errors import DamagedObjectError, DocumentChangedError, MissingObjectError
from mev.store.objects import ObjectStore, StoredDocument

LOG = logging.getLogger(__name__)
INDEX = "models.json"
_OBJECTS = "models"
_TRIES = 50
_PAUSE_S = 30.0
"""Time for which a store that did not answer is not asked, unless sharing finds it back."""
Verified = Callable[[str], Manifest]
"""Returns the verified manifest of a model in the folder, or raises `ModelError`."""


@dataclass(frozen=True, slots=True)
class _Objects:
    """Digests of a model's manifest and of its plots, by file name."""

    manifest: str
    plots: Mapping[str, str]


@dataclass(slots=True)
class _Index:
    models: dict[str, _Objects] = field(default_factory=dict)
    state: RegistryState = field(default_factory=RegistryState)


class SharedModels:
    """The models in `objects`; `verified` checks those of the folder before they are shared."""

    def __init__(self, objects: ObjectStore, folder: RegistryFolder, verified: Verified) -> None:
        self._objects = objects
        self._folder = folder
        self._verified = verified
        self._lock = threading.Lock()
        self._sharing = threading.Lock()
        self._known: StoredDocument | None = None
        self._taken: StoredDocument | None = None
        """The version of the document that the folder is a copy of."""
        self._index = _Index()
        self._copied: dict[str, str] = {}
        """Digests of the manifests in the folder, by model id."""
        self._away: tuple[float, UnavailableError] | None = None
        """Until when the store is not asked, and why."""
        self.refused: dict[str, MevError] = {}
        """Models whose manifest in the store is missing or damaged, with the reason."""
        self._unshared: MevError | None = None
        """Why models could not be shared the last time."""

    def pull(self) -> None:
        """Copy to the folder what other replicas changed, if the store answers."""
        if self._is_away():
            return
        with self._lock:
            if self._is_away():
                return
            try:
                with self._asking():
                    self._read()
            except MevError as error:
                LOG.warning(
                    "models of other replicas are not read now: %s",
                    error.detail,
                    extra={"action": "models_not_read"},
                )

    def share(self) -> None:
        """Store the folder's models that the store lacks, and copy those of other replicas.

        The first time, and if the store has lost its document, the folder's aliases are added too;
        those that the store has win.

        :raises MevError: when the store cannot be read or written.
        """
        with self._sharing:
            try:
                with self._asking():
                    self._share()
            except MevError as error:
                self._unshared = error
                raise
            self._unshared = None

    def check(self) -> None:
        """Check that the store can be read, and that all models could be shared.

        :raises MevError: when it does not.
        """
        if (away := self._is_away()) is not None:
            raise away
        with self._lock, self._asking():
            self._read()
        if (error := self._unshared or next(iter(self.refused.values()), None)) is not None:
            raise error

    def _share(self) -> None:
        with self._lock:
            index = self._read()
            is_copy = self._known is not None and not self._is_original()
        own = RegistryState() if is_copy else self._folder.read_state()
        found = {
            model_id: objects
            for model_id in self._folder.model_ids()
            if model_id not in index.models and (objects := self._stored(model_id)) is not None
        }
        if found or not is_copy:
            self._change(lambda index: _merge(index, found, own))

    def publish(self, manifest: Manifest, sealed: bytes) -> None:
        """Store a model with the manifest `sealed`, in place of an earlier manifest.

        The model's other files are in the folder.

        :raises MevError: when the store cannot be read or written.
        """
        self._join()
        objects = self._store(manifest, sealed)

        def apply(index: _Index) -> None:
            index.models[manifest.model_id] = objects

        self._change(apply)

    def manifest_sha256(self, model_id: str) -> str | None:
        """Return the digest of a model's manifest in the store, as it was last read."""
        objects = self._index.models.get(model_id)
        return objects.manifest if objects else None

    def change(self, apply: Callable[[RegistryState], None]) -> None:
        """Change the aliases or archived models; `apply` may be called several times.

        :raises MevError: when the store cannot be read or written.
        """
        self._join()
        self._change(lambda index: apply(index.state))

    def fetch(self, name: str, sha256: str) -> None:
        """Copy a model's file to the folder, unless it is there.

        :raises MevError: when it cannot be read, or does not have its digest.
        """
        if self._folder.has(name):
            return
        content = self._objects.get(_OBJECTS, sha256, max_bytes=model_files.MAX_BYTES)
        with self._folder.writing():
            self._folder.keep(name, content)

    def fetch_plots(self, model_id: str) -> None:
        """Copy a model's plots to the folder.

        :raises MevError: when one cannot be read, or does not have its digest.
        """
        there = self._folder.plots(model_id)
        objects = self._index.models.get(model_id)
        plots = {
            name: self._objects.get(_OBJECTS, digest, max_bytes=MAX_PLOT_BYTES)
            for name, digest in (objects.plots if objects else {}).items()
            if name not in there
        }
        if plots:
            with self._folder.writing():
                self._folder.keep_plots(model_id, plots)

    def manifest_stored_ns(self, model_id: str, sealed: bytes) -> int | None:
        """Return the time at which the store got a model's manifest, None if it has none.

        :raises BadManifestError: when the store has another manifest than `sealed`.
        :raises MevError: when the store cannot be read.
        """
        digest = self.manifest_sha256(model_id)
        if digest is None:
            return None
        if hashlib.sha256(sealed).hexdigest() != digest:
            raise BadManifestError(
                f"the manifest of model {model_id} in this folder is not the one that the object"
                f" store names, {digest}; its age is unknown"
            )
        return self._objects.stored_ns(_OBJECTS, digest)

    def _is_away(self) -> UnavailableError | None:
        """Return why the store is not asked now, or None."""
        if self._away is None or time.monotonic() > self._away[0]:
            return None
        return self._away[1]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Note whether the store answers; a thread each that waits would use up the threads."""
        try:
            yield
        except UnavailableError as error:
            self._away = time.monotonic() + _PAUSE_S, error
            raise
        self._away = None

    def _join(self) -> None:
        """Share the folder's aliases before any change, else the store's would replace them.

        :raises MevError: at once when the store did not answer lately.
        """
        if (away := self._is_away()) is not None:
            raise away
        if self._known is None or self._is_original():
            self.share()

    def _is_original(self) -> bool:
        """Return whether the folder has models or aliases that were not copied from the store."""
        state = self._folder.read_state()
        if state.copy_of == self._objects.place:
            return False
        return bool(state.aliases or state.archived or self._folder.model_ids())

    def _change(self, apply: Callable[[_Index], None]) -> None:
        with self._lock, self._asking():
            for _ in range(_TRIES):
                index = deepcopy(self._read())
                apply(index)
                try:
                    self._known = self._objects.replace(INDEX, _encode(index), self._known)
                except DocumentChangedError:
                    continue
                self._take(index)
                return
        raise ConflictError(
            f"{INDEX} of {self._objects.place} was changed by others {_TRIES} times; try again"
        )

    def _read(self) -> _Index:
        """Return the index; copy it to the folder if that is a copy of the store."""
        before = self._known
        self._known = self._objects.document(INDEX, before)
        if self._known is None:
            return _Index()
        if self._known is before and self._taken is before:
            return self._index
        index = _parse(self._known, self._objects.place)
        if not self._is_original():
            self._take(index)
        return index

    def _take(self, index: _Index) -> None:
        """Copy manifests and state of `index` to the folder."""
        refused: dict[str, MevError] = {}
        for model_id, objects in index.models.items():
            name = f"{model_id}{MANIFEST}"
            here = self._copied.get(model_id) or self._folder.sha256(name)
            if here != objects.manifest:
                try:
                    content = self._objects.get(_OBJECTS, objects.manifest, max_bytes=MAX_BYTES)
                except (DamagedObjectError, MissingObjectError) as error:
                    refused[model_id] = error
                    continue
                with self._folder.writing():
                    self._folder.put(name, content)
            self._copied[model_id] = objects.manifest
        state = RegistryState(index.state.aliases, index.state.archived, self._objects.place)
        with self._folder.writing():
            if self._folder.read_state() != state:
                self._folder.write_state(state)
        self._index, self.refused = index, refused
        self._taken = None if refused else self._known

    def _stored(self, model_id: str) -> _Objects | None:
        """Store a model of the folder; return None if its manifest is refused."""
        name = f"{model_id}{MANIFEST}"
        try:
            manifest = self._verified(model_id)
            return self._store(manifest, model_files.read(self._folder.path, name))
        except ModelError as error:
            LOG.warning(
                "model %s is not shared: %s: %s",
                model_id,
                error.code,
                error.detail,
                extra={"action": "model_not_shared"},
            )
            return None

    def _store(self, manifest: Manifest, sealed: bytes) -> _Objects:
        known = self._index.models.get(manifest.model_id)
        if known is not None:  # its files never change
            return _Objects(self._objects.put(_OBJECTS, sealed), known.plots)
        for form in FORMS:
            if (digest := manifest.digest(form)) and self._folder.has(f"{digest}.{form}"):
                self._objects.put(
                    _OBJECTS,
                    model_files.read_signed(self._folder.path, f"{digest}.{form}", digest),
                )
        plots = self._folder.plots(manifest.model_id)
        return _Objects(
            self._objects.put(_OBJECTS, sealed),
            {name: self._objects.put(_OBJECTS, content) for name, content in plots.items()},
        )


def _parse(document: StoredDocument, place: str) -> _Index:
    try:
        content: dict[str, Any] = orjson.loads(document.content)
        models = {
            model_id: _Objects(entry["manifest"], entry["plots"])
            for model_id, entry in content["models"].items()
            if MODEL_ID.fullmatch(model_id)
            and MODEL_ID.fullmatch(entry["manifest"])
            and all(PLOT.fullmatch(name) for name in entry["plots"])
        }
        return _Index(models, RegistryState(dict(content["aliases"]), dict(content["archived"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedObjectError(
            f"{INDEX} in {place} cannot be read ({error!r}); restore it from a copy or an older"
            " version of the bucket",
            key=INDEX,
        ) from None


def _merge(index: _Index, models: Mapping[str, _Objects], own: RegistryState) -> None:
    """Add models, and the aliases and archived models of a folder that `index` does not have."""
    for model_id, objects in models.items():
        index.models.setdefault(model_id, objects)
    for alias, model_id in own.aliases.items():
        if model_id in index.models:
            index.state.aliases.setdefault(alias, model_id)
    for model_id, at in own.archived.items():
        if model_id in models and model_id not in index.state.aliases.values():
            index.state.archived.setdefault(model_id, at)


def _encode(index: _Index) -> bytes:
    content = {
        "format_version": 1,
        "models": {
            model_id: {"manifest": objects.manifest, "plots": dict(objects.plots)}
            for model_id, objects in index.models.items()
        },
        "aliases": index.state.aliases,
        "archived": index.state.archived,
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
