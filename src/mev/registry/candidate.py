"""Unsigned models: written by the training process, checked and signed by its parent.

The training process is untrusted. Before it signs, the parent checks digests, sizes, features, and,
in a third, confined process, the scores of each form. The parent itself adds the lineage: the job
that trained the model, its owner and the time.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mev.core.confine import Confinement
from mev.crypto.envelope import Signer
from mev.registry import re_sign
from mev.registry.file_checks import check_files, check_size
from mev.registry.folder import MAX_PLOT_BYTES, PLOT
from mev.registry.registry import Registry, RegistryEntry
from mev.scoring import manifest as manifests
from mev.scoring.errors import BadManifestError, MalformedModelError
from mev.scoring.load import check_schema
from mev.scoring.manifest import ABI, FORMS, Manifest

GOLDEN_ROWS = 64
_NAME = "candidate"
_MANIFEST = f"{_NAME}.json"
_LONGEST_TEXT = 128
_MAX_PLOTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An unsigned model: its manifest, and its files by form."""

    manifest: Manifest
    files: Mapping[str, bytes]


def write(folder: Path, candidate: Candidate) -> None:
    """Write a model to `folder`, for :func:`register`."""
    for form, content in candidate.files.items():
        (folder / f"{_NAME}.{form}").write_bytes(content)
    (folder / _MANIFEST).write_bytes(manifests.to_json(candidate.manifest))


def register(
    registry: Registry, folder: Path, key: Signer, lineage: Mapping[str, Any], *, compiled: bool
) -> RegistryEntry:
    """Check the model in `folder`, sign and register it, and remove its files from `folder`.

    The training process must not be able to change `folder`. `lineage` replaces entries of the
    manifest's lineage with the same names. Native code is accepted only when it was requested
    (`compiled`): agents run it, and its effects beside scoring cannot be checked.

    :raises ModelError: naming what is wrong with it.
    :raises ModelTooLargeError: when a file is larger than agents accept.
    """
    candidate = _read(folder)
    _check(candidate, registry.confinement, compiled=compiled)
    manifest = replace(
        candidate.manifest,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        cpu=platform.machine(),
        abi=ABI,
        lineage={**candidate.manifest.lineage, **lineage},
    )
    entry = registry.add(manifest, candidate.files, key, plots=_plots(folder))
    for name in (_MANIFEST, *(f"{_NAME}.{form}" for form in FORMS)):
        (folder / name).unlink(missing_ok=True)
    return entry


def _plots(folder: Path) -> dict[str, bytes]:
    """Return the plots in `folder`, each as SVG if there is one; without those of odd size."""
    paths = [
        drawn if (drawn := path.with_suffix(".svg")).exists() else path
        for path in sorted(folder.glob("*.png"))
        if PLOT.fullmatch(path.name)
    ]
    return {
        path.name: path.read_bytes()
        for path in paths[:_MAX_PLOTS]
        if path.stat().st_size <= MAX_PLOT_BYTES
    }


def _read(folder: Path) -> Candidate:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    if _MANIFEST not in sizes or f"{_NAME}.ubj" not in sizes:
        raise MalformedModelError("the training left no model")
    check_size("manifest", sizes[_MANIFEST])
    forms = [form for form in FORMS if f"{_NAME}.{form}" in sizes]
    for form in forms:
        check_size(form, sizes[f"{_NAME}.{form}"])
    manifest = manifests.from_json((folder / _MANIFEST).read_bytes())
    return Candidate(
        manifest=manifest, files={form: (folder / f"{_NAME}.{form}").read_bytes() for form in forms}
    )


def _check(candidate: Candidate, confinement: Confinement | None, *, compiled: bool) -> None:
    manifest = candidate.manifest
    _check_types(manifest)
    check_schema(manifest)
    check_files(manifest, candidate.files)
    named = {form for form in FORMS if manifest.digest(form)}
    if named != set(candidate.files):
        raise BadManifestError(
            f"the manifest names {', '.join(sorted(named))}, and there are"
            f" {', '.join(sorted(candidate.files))}"
        )
    if "so" in named and not compiled:
        raise MalformedModelError(
            "the training left native code, which was not asked for; ask for it (--compiled) or"
            " change the request"
        )
    if not {"mevt", "so"} & named:
        raise MalformedModelError("the training left no form that scores")
    if (
        not 0 < len(manifest.golden_rows) <= GOLDEN_ROWS
        or not np.isfinite(manifest.golden_scores).all()
    ):
        raise BadManifestError(
            f"{len(manifest.golden_rows)} golden rows; 1 to {GOLDEN_ROWS} with finite scores are"
            " needed"
        )
    for form in sorted({"mevt", "so"} & named):
        re_sign.check_scores(candidate.files[form], form, manifest, confinement)


def _check_types(manifest: Manifest) -> None:
    """Check the types of the manifest's fields that parsing does not check."""
    said: Any = manifest
    numbers = isinstance(said.metrics, dict) and all(
        isinstance(value, int | float) for value in said.metrics.values()
    )
    texts = (said.objective, said.feature_schema, said.feature_schema_hash, *said.features)
    if not numbers or not isinstance(said.lineage, dict) or not isinstance(said.trees, int):
        raise BadManifestError("metrics, lineage or trees: of another type than a manifest has")
    if not all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in texts):
        raise BadManifestError("objective, feature_schema or features: no short text")
