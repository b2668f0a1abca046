"""Model registry: immutable files named by digest, and mutable aliases.

They are in a folder (``MODEL_DIR``), see :mod:`mev.registry.folder`. With an object store, the
folder is a copy of what replicas share, see :mod:`mev.registry.shared`.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mev.core.clock import Clock, now_ns
from mev.core.confine import Confinement
from mev.core.errors import InvalidInputError, MevError
from mev.crypto.envelope import Signer
from mev.crypto.trust import TrustStore
from mev.registry import re_sign
from mev.registry.errors import (
    AmbiguousModelError,
    ModelInUseError,
    UnknownModelError,
    UnknownModelFileError,
)
from mev.registry.file_checks import check_files, check_size
from mev.registry.folder import MODEL_ID, RegistryFolder, RegistryState
from mev.registry.manifest_cache import MANIFEST, Manifests
from mev.registry.re_sign import Notary
from mev.registry.shared import SharedModels
from mev.scoring import model_files
from mev.scoring.errors import (
    BadManifestError,
    ModelError,
    ModelMissingError,
    UnsignedManifestError,
)
from mev.scoring.load import load, read_manifest
from mev.scoring.manifest import FORMS, Manifest, seal
from mev.scoring.predictor import Predictor
from mev.store.objects import ObjectStore

LOG = logging.getLogger(__name__)
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PART_OF_ID = re.compile(r"[0-9a-f]{8,63}")
_AGENTS_FILE = re.compile(r"[0-9a-f]{64}\.(mevt|so|manifest\.json)")
DEPLOYED = frozenset({"champion", "challenger", "shadow"})
"""Aliases managed by deployments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEntry:
    """A registered model with its aliases and the time it was archived."""

    manifest: Manifest
    aliases: tuple[str, ...]
    archived_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Models, newest first, and the refused manifests by model id with the reason."""

    entries: tuple[RegistryEntry, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A downloadable file of a model."""

    path: Path
    sha256: str
    status: os.stat_result


class Registry:
    """Registry of the models in `folder` whose manifests `trust` verifies.

    `confinement` applies to processes that test a file, see :func:`probe`. Replicas with the same
    `objects` have the same models and aliases.
    """

    def __init__(
        self,
        folder: Path,
        trust: TrustStore,
        confinement: Confinement | None = None,
        *,
        clock: Clock = now_ns,
        objects: ObjectStore | None = None,
    ) -> None:
        self.folder = folder
        self._files = RegistryFolder(folder)
        self._shared = (
            SharedModels(objects, self._files, lambda name: read_manifest(folder, name, trust))
            if objects
            else None
        )
        self.confinement = confinement
        self.trust = trust
        self._manifests = Manifests(folder, trust, clock)

    def add(
        self,
        manifest: Manifest,
        files: Mapping[str, bytes],
        *keys: Signer,
        plots: Mapping[str, bytes] | None = None,
    ) -> RegistryEntry:
        """Store a model and sign its manifest with `keys`.

        `files` are by form (``ubj``, ``mevt``, ``so``) and match the digests in `manifest`; `plots`
        are by file name. A model that exists keeps its manifest, unless no trusted key signed that
        one. If the object store does not answer, the model is in the folder and shared later.

        :raises BadModelDigestError: when a file does not match its digest in the manifest.
        :raises ModelTooLargeError: when a file is larger than agents accept.
        """
        check_files(manifest, files)
        sealed = seal(manifest, *keys)
        check_size("manifest", len(sealed))
        self._read()
        with self._files.writing():
            for form, content in files.items():
                self._files.keep(f"{manifest.digest(form)}.{form}", content)
            self._files.keep_plots(manifest.model_id, plots or {})
            try:
                read_manifest(self.folder, manifest.model_id, self.trust)
            except (ModelMissingError, UnsignedManifestError):
                self._files.put(f"{manifest.model_id}{MANIFEST}", sealed)
        self._publish(manifest)
        return self.get(manifest.model_id)

    @property
    def is_shared(self) -> bool:
        """Return whether there is an object store."""
        return self._shared is not None

    def share(self) -> None:
        """Store the models that are only in the folder in the object store, if there is one.

        :raises MevError: when it cannot be read or written.
        """
        if self._shared is not None:
            self._shared.share()

    def check_shared(self) -> None:
        """Check that the object store, if there is one, answers and has all models.

        :raises MevError: when it does not.
        """
        if self._shared is not None:
            self._shared.check()

    def get(self, name: str) -> RegistryEntry:
        """Return the model with that id, alias or unique id prefix of 8 digits or more.

        :raises UnknownModelError: when there is none.
        :raises AmbiguousModelError: when several match.
        :raises ModelError: when its manifest is refused.
        """
        state = self._read()
        model_id = self._id(name, state)
        try:
            return _entry(read_manifest(self.folder, model_id, self.trust), state)
        except ModelMissingError:
            if self._shared is not None and (why := self._shared.refused.get(model_id)):
                raise why from None
            raise UnknownModelError(f"there is no model {name[:100]!r}") from None
        except ModelError:
            if not MODEL_ID.fullmatch(model_id):
                raise UnknownModelError(f"there is no model {name[:100]!r}") from None
            raise

    def list(self, *, archived: bool = False) -> Listing:
        """Return all models, including archived ones when `archived`."""
        state, entries, refused = self._read(), [], {}
        if self._shared is not None:
            refused = {
                model_id: f"{why.code}: {why.detail}"
                for model_id, why in self._shared.refused.items()
            }
        for model_id, found in self._manifests.read().items():
            if model_id in state.archived and not archived:
                continue
            if isinstance(found, ModelError):
                refused[model_id] = f"{found.code}: {found.detail}"
            else:
                entries.append(_entry(found, state))
        entries.sort(
            key=lambda entry: (entry.manifest.created_at, entry.manifest.model_id), reverse=True
        )
        return Listing(entries=tuple(entries), refused=refused)

    def pinned_jobs(self) -> dict[str, str]:
        """Return the exports used by models with an alias, each with the reason to retain it."""
        found: dict[str, str] = {}
        for entry in self.list().entries:
            export_id = entry.manifest.lineage.get("export")
            if entry.aliases and isinstance(export_id, str):
                model = entry.manifest.model_id[:12]
                found[export_id] = (
                    f"model {model} ({', '.join(entry.aliases)}) learned from it; take the aliases"
                    " away first"
                )
        return found

    def load(self, name: str, form: str | None = None) -> Predictor:
        """Return the predictor of the model with that id or alias.

        Without `form`, the data-only file is preferred.

        :raises ModelError: naming what is wrong with it.
        """
        manifest = self.get(name).manifest
        form = form or ("mevt" if manifest.mevt_sha256 else "so")
        if (digest := manifest.digest(form)) is None:
            raise ModelMissingError(f"model {manifest.model_id} has no {form} file")
        self._fetch(manifest, form)
        return load(self.folder / f"{digest}.{form}", manifest)

    def read(self, name: str, form: str) -> bytes:
        """Return the verified file of a model in that form."""
        manifest = self.get(name).manifest
        self._fetch(manifest, form)
        return model_files.read_signed(
            self.folder, f"{manifest.digest(form)}.{form}", manifest.digest(form)
        )

    def point(self, alias: str, name: str | None) -> RegistryEntry | None:
        """Set `alias` to a model, or delete it when `name` is None.

        :raises UnknownModelError: when there is no such model.
        """
        if not _ALIAS.fullmatch(alias):
            raise InvalidInputError(
                f"alias {alias[:100]!r}; up to 32 small letters, digits, - and _, the first a"
                " letter",
                field="alias",
            )
        entry = None if name is None else self.get(name)

        def apply(state: RegistryState) -> None:
            state.aliases.pop(alias, None)
            if entry is not None:
                if entry.manifest.model_id in state.archived:
                    raise ModelInUseError(
                        f"model {entry.manifest.model_id} is archived; restore it first"
                    )
                state.aliases[alias] = entry.manifest.model_id

        self._change(apply)
        return entry and self.get(entry.manifest.model_id)

    def archive(self, name: str, *, archived: bool = True) -> RegistryEntry:
        """Archive a model, or restore it; its files stay.

        :raises ModelInUseError: when it has an alias.
        """
        model_id = self.get(name).manifest.model_id
        at = datetime.now(UTC).isoformat(timespec="seconds")

        def apply(state: RegistryState) -> None:
            if aliases := [alias for alias, named in state.aliases.items() if named == model_id]:
                raise ModelInUseError(
                    f"model {model_id} is {', '.join(aliases)}; move the alias first",
                    aliases=aliases,
                )
            state.archived.pop(model_id, None)
            if archived:
                state.archived[model_id] = at

        self._change(apply)
        return self.get(model_id)

    def plots(self, name: str) -> dict[str, bytes]:
        """Return the plots of a model's training, by file name; none while they cannot be read."""
        model_id = self.get(name).manifest.model_id
        if self._shared is not None:
            try:
                self._shared.fetch_plots(model_id)
            except MevError as error:
                LOG.warning(
                    "plots of model %s: %s",
                    model_id,
                    error.detail,
                    extra={"action": "plots_not_read"},
                )
        return self._files.plots(model_id)

    def agents_file(self, model_id: str, file_name: str) -> File:
        """Return a file of a model for an agent machine, by model id, archived or not.

        Only the files that agents load are available.

        :raises UnknownModelFileError: when it is none of those; the error does not list the
            existing files.
        """
        try:
            if _AGENTS_FILE.fullmatch(file_name) and MODEL_ID.fullmatch(model_id):
                return self.file(model_id, file_name)
        except (UnknownModelError, UnknownModelFileError):
            pass
        raise UnknownModelFileError(
            "no such file for agents: they get .mevt, .so and .manifest.json of a model, by its id"
        )

    def file(self, name: str, file_name: str) -> File:
        """Return a file of the model with the id or alias `name`.

        :raises UnknownModelFileError: when the model has no file called `file_name`.
        :raises ModelError: when it is missing or was changed.
        """
        manifest = self.get(name).manifest
        digests = {
            f"{digest}.{form}": digest for form in FORMS if (digest := manifest.digest(form))
        }
        its_manifest = f"{manifest.model_id}{MANIFEST}"
        if file_name == its_manifest:
            digests[file_name] = hashlib.sha256(
                model_files.read(self.folder, file_name)
            ).hexdigest()
        if file_name not in digests:
            raise UnknownModelFileError(
                f"model {manifest.model_id} has no file {file_name[:100]!r}",
                files=sorted([its_manifest, *digests]),
            )
        if file_name != its_manifest:
            self._fetch(manifest, file_name.rpartition(".")[2])
            # a changed file must not be served under the original digest
            model_files.read_signed(self.folder, file_name, digests[file_name])
        path = self.folder / file_name
        return File(path=path, sha256=digests[file_name], status=path.lstat())

    def sign(self, name: str, notary: Notary) -> RegistryEntry:
        """Sign a manifest that is refused only because its key was replaced.

        A manifest that is accepted stays unchanged.

        :raises UnknownModelError: when there is no such model.
        :raises ModelError, LateManifestError: when no retired key counts, or a file was changed.
        """
        try:
            return self.get(name)
        except UnsignedManifestError:
            model_id = self._id(name, self._read())
        path = self.folder / f"{model_id}{MANIFEST}"
        data = model_files.read(self.folder, path.name)
        stored_ns = self._shared.manifest_stored_ns(model_id, data) if self._shared else None
        manifest = re_sign.vouched(data, stored_ns or path.lstat().st_ctime_ns, notary.retired())
        if manifest.model_id != model_id:
            raise BadManifestError(
                f"the manifest of model {manifest.model_id} lies under the name of model {model_id}"
            )
        for form in FORMS:
            self._fetch(manifest, form)
        # slow, so done without the lock that alias changes need
        re_sign.check_files(self.folder, manifest, self.confinement)
        signed = re_sign.signed_again(data, notary.model_signer())
        if self._shared is not None:
            self._shared.publish(manifest, signed)
            return self.get(model_id)
        with self._files.writing():
            # otherwise another process has signed it, or it is refused below
            if model_files.read(self.folder, path.name) == data:
                self._files.put(path.name, signed)
        return self.get(model_id)

    def _id(self, name: str, state: RegistryState) -> str:
        """Return the id of the model that `name` means, or `name` where there is none."""
        if name in state.aliases or not _PART_OF_ID.fullmatch(name):
            return state.aliases.get(name, name)
        found = sorted(
            path.name.removesuffix(MANIFEST) for path in self.folder.glob(f"{name}*{MANIFEST}")
        )
        if len(found) > 1:
            raise AmbiguousModelError(
                f"{len(found)} models begin with {name}: {', '.join(found[:5])}", models=found[:5]
            )
        return found[0] if found else name

    def _fetch(self, manifest: Manifest, form: str) -> None:
        """Copy a file from the object store unless it is in the folder."""
        if self._shared is not None and (digest := manifest.digest(form)) is not None:
            self._shared.fetch(f"{digest}.{form}", digest)

    def _publish(self, manifest: Manifest) -> None:
        """Store a model of the folder in the object store."""
        name = f"{manifest.model_id}{MANIFEST}"
        if self._shared is None:
            return
        there = self._shared.manifest_sha256(manifest.model_id)
        if there == self._files.sha256(name):
            return
        try:
            self._shared.publish(manifest, model_files.read(self.folder, name))
        except MevError as error:
            if there is not None:  # the earlier manifest would replace this one
                raise
            LOG.warning(
                "model %s is only on this machine until the object store answers: %s",
                manifest.model_id,
                error.detail,
                extra={"action": "model_not_shared"},
            )

    def _read(self) -> RegistryState:
        if self._shared is not None:
            self._shared.pull()
        return self._files.read_state()

    def _change(self, apply: Callable[[RegistryState], None]) -> None:
        if self._shared is not None:
            self._shared.change(apply)
            return
        with self._files.writing():
            state = self._files.read_state()
            apply(state)
            state.copy_of = ""
            self._files.write_state(state)


def _entry(manifest: Manifest, state: RegistryState) -> RegistryEntry:
    aliases = tuple(
        sorted(alias for alias, named in state.aliases.items() if named == manifest.model_id)
    )
    return RegistryEntry(
        manifest=manifest, aliases=aliases, archived_at=state.archived.get(manifest.model_id)
    )
