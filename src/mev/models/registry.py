"""The models of this machine: files that never change, named by their digests, and aliases that move.

The folder (``MODEL_DIR``) holds the files of each model and ``registry.json`` with the aliases and what is archived. A model exists
from the moment its manifest does, which is written last; any number of processes may read, and writers wait for each other.
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

from mev.core.errors import InvalidInputError
from mev.core.files import write_atomically
from mev.crypto.envelope import Signer
from mev.crypto.trust import TrustStore
from mev.models import resign
from mev.models.errors import AmbiguousModelError, ModelInUseError, ModelTooLargeError, UnknownModelError, UnknownModelFileError
from mev.models.resign import Notary
from mev.models.seen import MANIFEST, Manifests
from mev.predict import manifest as manifests
from mev.predict import vault
from mev.predict.errors import (
    BadManifestError,
    BadModelDigestError,
    ModelError,
    ModelMissingError,
    UnsignedManifestError,
)
from mev.predict.load import load, read_manifest
from mev.predict.manifest import Manifest, seal
from mev.predict.predictor import Predictor

_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_ID = re.compile(r"[0-9a-f]{64}")
_PART_OF_ID = re.compile(r"[0-9a-f]{8,63}")
_AGENTS_FILE = re.compile(r"[0-9a-f]{64}\.(mevt|so|manifest\.json)")
DEPLOYED = frozenset({"champion", "challenger", "shadow"})
"""Aliases that say what agents run, and that deployments move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A registered model, the aliases that name it, and since when it is archived."""

    manifest: Manifest
    aliases: tuple[str, ...]
    archived_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The models, newest first, and the ids of those whose manifest is refused, with the reason."""

    entries: tuple[Entry, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of a model as others may have it."""

    path: Path
    sha256: str
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class _State:
    aliases: dict[str, str] = field(default_factory=dict)
    archived: dict[str, str] = field(default_factory=dict)


class Registry:
    """The models in `folder`, as far as `trust` vouches for them."""

    def __init__(self, folder: Path, trust: TrustStore) -> None:
        self.folder = folder
        self.trust = trust
        self._manifests = Manifests(folder, trust)

    def add(self, manifest: Manifest, files: Mapping[str, bytes], *keys: Signer) -> Entry:
        """Keep a model: `files` by form (``ubj``, ``mevt``, ``so``), each with the digest in `manifest`, which `keys` sign.

        A model that is there already keeps its manifest, unless no key that counts signed that one.

        :raises BadModelDigestError: when a file is not the one that the manifest names.
        :raises ModelTooLargeError: when agents would refuse a file for its size.
        """
        for form, content in files.items():
            if hashlib.sha256(content).hexdigest() != manifest.digest(form):
                raise BadModelDigestError(f"the {form} file is not the one that the manifest names")
            check_size(form, len(content))
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

    def get(self, name: str) -> Entry:
        """Return the model with that id or alias, or the one whose id begins like that, with 8 digits or more.

        :raises UnknownModelError: when there is none.
        :raises AmbiguousModelError: when there are several.
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
        """Return every model; those that were archived too, when `archived`."""
        state, entries, refused = self._read(), [], {}
        for model_id, found in self._manifests.read().items():
            if model_id in state.archived and not archived:
                continue
            if isinstance(found, ModelError):
                refused[model_id] = f"{found.code}: {found.detail}"
            else:
                entries.append(_entry(found, state))
        entries.sort(key=lambda entry: (entry.manifest.created_at, entry.manifest.model_id), reverse=True)
        return Listing(entries=tuple(entries), refused=refused)

    def load(self, name: str, form: str | None = None) -> Predictor:
        """Return the model with that id or alias, ready to score; data-only where it has such a file, unless `form` says otherwise.

        :raises ModelError: naming what is wrong with it.
        """
        manifest = self.get(name).manifest
        form = form or ("mevt" if manifest.mevt_sha256 else "so")
        if (digest := manifest.digest(form)) is None:
            raise ModelMissingError(f"model {manifest.model_id} has no {form} file")
        return load(self.folder / f"{digest}.{form}", manifest)

    def read(self, name: str, form: str) -> bytes:
        """Return the file of a model in that form, its digest checked."""
        manifest = self.get(name).manifest
        return vault.read_signed(self.folder, f"{manifest.digest(form)}.{form}", manifest.digest(form))

    def point(self, alias: str, name: str | None) -> Entry | None:
        """Let `alias` name another model; with None it goes.

        :raises UnknownModelError: when there is no such model.
        """
        if not _ALIAS.fullmatch(alias):
            raise InvalidInputError(f"alias {alias[:100]!r}; up to 32 small letters, digits, - and _, the first a letter", field="alias")
        entry = None if name is None else self.get(name)
        with self._writing():
            state = self._read()
            state.aliases.pop(alias, None)
            if entry is not None:
                if entry.manifest.model_id in state.archived:
                    raise ModelInUseError(f"model {entry.manifest.model_id} is archived; restore it first")
                state.aliases[alias] = entry.manifest.model_id
            self._write(state)
        return entry and self.get(entry.manifest.model_id)

    def archive(self, name: str, *, archived: bool = True) -> Entry:
        """Take a model out of the list, or put it back; its files stay.

        :raises ModelInUseError: when an alias names it.
        """
        model_id = self.get(name).manifest.model_id
        with self._writing():
            state = self._read()
            if aliases := [alias for alias, named in state.aliases.items() if named == model_id]:
                raise ModelInUseError(f"model {model_id} is {', '.join(aliases)}; move the alias first", aliases=aliases)
            state.archived.pop(model_id, None)
            if archived:
                state.archived[model_id] = datetime.now(UTC).isoformat(timespec="seconds")
            self._write(state)
        return self.get(model_id)

    def agents_file(self, model_id: str, file_name: str) -> File:
        """Return a file of a model for a machine that runs agents: by the id, archived or not, what they load and nothing else.

        :raises UnknownModelFileError: when it is none of those; it does not say which there are.
        """
        try:
            if _AGENTS_FILE.fullmatch(file_name) and _ID.fullmatch(model_id):
                return self.file(model_id, file_name)
        except (UnknownModelError, UnknownModelFileError):
            pass
        raise UnknownModelFileError("no such file for agents: they get .mevt, .so and .manifest.json of a model, by its id")

    def file(self, name: str, file_name: str) -> File:
        """Return a file of the model with that id or alias, by its name in the folder.

        :raises UnknownModelFileError: when it is no file of that model.
        :raises ModelError: when it is missing, or was changed.
        """
        manifest = self.get(name).manifest
        digests = {f"{digest}.{form}": digest for form in ("mevt", "so", "ubj") if (digest := manifest.digest(form))}
        its_manifest = f"{manifest.model_id}{MANIFEST}"
        if file_name == its_manifest:
            digests[file_name] = hashlib.sha256(vault.read(self.folder, file_name)).hexdigest()
        if file_name not in digests:
            raise UnknownModelFileError(
                f"model {manifest.model_id} has no file {file_name[:100]!r}", files=sorted([its_manifest, *digests])
            )
        if file_name != its_manifest:
            vault.read_signed(self.folder, file_name, digests[file_name])  # what was changed is not given away under the true digest
        path = self.folder / file_name
        return File(path=path, sha256=digests[file_name], status=path.lstat())

    def sign(self, name: str, notary: Notary) -> Entry:
        """Sign a manifest that is refused only because its key was replaced; one that is not refused stays as it is.

        :raises UnknownModelError: when there is no such model.
        :raises ModelError, LateManifestError: when nobody vouches for it, or a file of it is another one.
        """
        try:
            return self.get(name)
        except UnsignedManifestError:
            model_id = self._id(name, self._read())
        path = self.folder / f"{model_id}{MANIFEST}"
        data = vault.read(self.folder, path.name)
        manifest = resign.vouched(data, path.lstat().st_ctime_ns, notary.retired())
        if manifest.model_id != model_id:
            raise BadManifestError(f"the manifest of model {manifest.model_id} lies under the name of model {model_id}")
        resign.check_files(self.folder, manifest)  # takes its time: nobody waits for it who moves an alias
        with self._writing():
            if vault.read(self.folder, path.name) == data:  # else somebody else has signed it meanwhile, or it is refused below
                self._put(path.name, resign.signed_again(data, notary.signer()))
        return self.get(model_id)

    def _id(self, name: str, state: _State) -> str:
        """Return the id of the model that is named, and `name` where there is none."""
        if name in state.aliases or not _PART_OF_ID.fullmatch(name):
            return state.aliases.get(name, name)
        found = sorted(path.name.removesuffix(MANIFEST) for path in self.folder.glob(f"{name}*{MANIFEST}"))
        if len(found) > 1:
            raise AmbiguousModelError(f"{len(found)} models begin with {name}: {', '.join(found[:5])}", models=found[:5])
        return found[0] if found else name

    def _keep(self, name: str, content: bytes) -> None:
        if not (self.folder / name).exists():  # else of the same content, or one that is refused; a file in use is never written over
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
        write_atomically(self.folder / "registry.json", orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def check_size(form: str, size: int) -> None:
    """Refuse a file that agents would not read.

    :raises ModelTooLargeError: when it is larger than that.
    """
    most = manifests.MAX_BYTES if form == "manifest" else vault.MAX_BYTES
    if size > most:
        raise ModelTooLargeError(
            f"the {form} file has {size} bytes, and agents take {most}: train fewer or smaller trees (rounds, max_depth)",
            form=form,
            bytes=size,
        )


def _entry(manifest: Manifest, state: _State) -> Entry:
    aliases = tuple(sorted(alias for alias, named in state.aliases.items() if named == manifest.model_id))
    return Entry(manifest=manifest, aliases=aliases, archived_at=state.archived.get(manifest.model_id))
