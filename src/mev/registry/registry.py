"""Local model registry: immutable files named by digest, and mutable aliases.

The folder (``MODEL_DIR``) holds the files of each model and ``registry.json`` with aliases and
archived models. The manifest is written last and makes the model exist. Any number of processes may
read; writers take a lock.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from mev.core.clock import Clock, now_ns
from mev.core.confine import Confinement
from mev.core.errors import InvalidInputError
from mev.core.files import write_atomically
from mev.crypto.envelope import Signer
from mev.crypto.trust import TrustStore
from mev.registry import re_sign
from mev.registry.errors import (
    AmbiguousModelError,
    ModelInUseError,
    ModelTooLargeError,
    UnknownModelError,
    UnknownModelFileError,
)
from mev.registry.manifest_cache import MANIFEST, Manifests
from mev.registry.re_sign import Notary
from mev.scoring import manifest as manifests
from mev.scoring import model_files
from mev.scoring.errors import (
    BadManifestError,
    BadModelDigestError,
    ModelError,
    ModelMissingError,
    UnsignedManifestError,
)
from mev.scoring.load import load, read_manifest
from mev.scoring.manifest import Manifest, seal
from mev.scoring.predictor import Predictor

_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_ID = re.compile(r"[0-9a-f]{64}")
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


@dataclass(frozen=True, slots=True)
class _State:
    aliases: dict[str, str] = field(default_factory=dict)
    archived: dict[str, str] = field(default_factory=dict)


class Registry:
    """Registry of the models in `folder` whose manifests `trust` verifies.

    `confinement` applies to processes that test a file, see :func:`probe`.
    """

    def __init__(
        self,
        folder: Path,
        trust: TrustStore,
        confinement: Confinement | None = None,
        *,
        clock: Clock = now_ns,
    ) -> None:
        self.folder = folder
        self.confinement = confinement
        self.trust = trust
        self._manifests = Manifests(folder, trust, clock)

    def add(self, manifest: Manifest, files: Mapping[str, bytes], *keys: Signer) -> RegistryEntry:
        """Store a model and sign its manifest with `keys`.

        `files` are by form (``ubj``, ``mevt``, ``so``) and match the digests in `manifest`. A model
        that exists keeps its manifest, unless no trusted key signed that one.

        :raises BadModelDigestError: when a file does not match its digest in the manifest.
        :raises ModelTooLargeError: when a file is larger than agents accept.
        """
        check_files(manifest, files)
        sealed = seal(manifest, *keys)
        check_size("manifest", len(sealed))
        with self._writing():
            for form, content in files.items():
                self._keep(f"{manifest.digest(form)}.{form}", content)
            try:
                read_manifest(self.folder, manifest.model_id, self.trust)
            except (ModelMissingError, UnsignedManifestError):
                self._put(f"{manifest.model_id}{MANIFEST}", sealed)
        return self.get(manifest.model_id)

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
            raise UnknownModelError(f"there is no model {name[:100]!r}") from None
        except ModelError:
            if not _ID.fullmatch(model_id):
                raise UnknownModelError(f"there is no model {name[:100]!r}") from None
            raise

    def list(self, *, archived: bool = False) -> Listing:
        """Return all models, including archived ones when `archived`."""
        state, entries, refused = self._read(), [], {}
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
        return load(self.folder / f"{digest}.{form}", manifest)

    def read(self, name: str, form: str) -> bytes:
        """Return the verified file of a model in that form."""
        manifest = self.get(name).manifest
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
        with self._writing():
            state = self._read()
            state.aliases.pop(alias, None)
            if entry is not None:
                if entry.manifest.model_id in state.archived:
                    raise ModelInUseError(
                        f"model {entry.manifest.model_id} is archived; restore it first"
                    )
                state.aliases[alias] = entry.manifest.model_id
            self._write(state)
        return entry and self.get(entry.manifest.model_id)

    def archive(self, name: str, *, archived: bool = True) -> RegistryEntry:
        """Archive a model, or restore it; its files stay.

        :raises ModelInUseError: when it has an alias.
        """
        model_id = self.get(name).manifest.model_id
        with self._writing():
            state = self._read()
            if aliases := [alias for alias, named in state.aliases.items() if named == model_id]:
                raise ModelInUseError(
                    f"model {model_id} is {', '.join(aliases)}; move the alias first",
                    aliases=aliases,
                )
            state.archived.pop(model_id, None)
            if archived:
                state.archived[model_id] = datetime.now(UTC).isoformat(timespec="seconds")
            self._write(state)
        return self.get(model_id)

    def agents_file(self, model_id: str, file_name: str) -> File:
        """Return a file of a model for an agent machine, by model id, archived or not.

        Only the files that agents load are available.

        :raises UnknownModelFileError: when it is none of those; the error does not list the
            existing files.
        """
        try:
            if _AGENTS_FILE.fullmatch(file_name) and _ID.fullmatch(model_id):
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
            f"{digest}.{form}": digest
            for form in ("mevt", "so", "ubj")
            if (digest := manifest.digest(form))
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
        manifest = re_sign.vouched(data, path.lstat().st_ctime_ns, notary.retired())
        if manifest.model_id != model_id:
            raise BadManifestError(
                f"the manifest of model {manifest.model_id} lies under the name of model {model_id}"
            )
        # slow, so done without the lock that alias changes need
        re_sign.check_files(self.folder, manifest, self.confinement)
        with self._writing():
            # otherwise another process has signed it, or it is refused below
            if model_files.read(self.folder, path.name) == data:
                self._put(path.name, re_sign.signed_again(data, notary.model_signer()))
        return self.get(model_id)

    def _id(self, name: str, state: _State) -> str:
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

    def _keep(self, name: str, content: bytes) -> None:
        # an existing file is never overwritten: it may be in use
        if not (self.folder / name).exists():
            self._put(name, content)

    def _put(self, name: str, content: bytes) -> None:
        path = self.folder / name
        write_atomically(path, content)
        path.chmod(0o400)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> _State:
        try:
            content: dict[str, Any] = orjson.loads((self.folder / "registry.json").read_bytes())
        except FileNotFoundError:
            return _State()
        return _State(content["aliases"], content["archived"])

    def _write(self, state: _State) -> None:
        content = {"aliases": state.aliases, "archived": state.archived}
        write_atomically(
            self.folder / "registry.json",
            orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS),
        )


def check_files(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Check digests and sizes of `files`, by form.

    :raises BadModelDigestError, ModelTooLargeError: naming the form.
    """
    for form, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest.digest(form):
            raise BadModelDigestError(f"the {form} file is not the one that the manifest names")
        check_size(form, len(content))


def check_size(form: str, size: int) -> None:
    """Check that a file is not larger than agents accept.

    :raises ModelTooLargeError: when it is.
    """
    most = manifests.MAX_BYTES if form == "manifest" else model_files.MAX_BYTES
    if size > most:
        raise ModelTooLargeError(
            f"the {form} file has {size} bytes, and agents take {most}: train fewer or smaller"
            " trees (rounds, max_depth)",
            form=form,
            bytes=size,
        )


def _entry(manifest: Manifest, state: _State) -> RegistryEntry:
    aliases = tuple(
        sorted(alias for alias, named in state.aliases.items() if named == manifest.model_id)
    )
    return RegistryEntry(
        manifest=manifest, aliases=aliases, archived_at=state.archived.get(manifest.model_id)
    )
