"""Comparison of two models, with caveats about comparing their metrics."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mev.registry.registry import RegistryEntry
from mev.registry.views import ComparisonOut, SidesOut, model

_MISSING = object()


def compare(a: RegistryEntry, b: RegistryEntry) -> ComparisonOut:
    """Return the differences between `a` and `b`."""
    caveats = list(_caveats(a, b))
    ours, theirs = _parameters(a), _parameters(b)
    differing = [
        name for name in ours | theirs if ours.get(name, _MISSING) != theirs.get(name, _MISSING)
    ]
    return ComparisonOut(
        a=model(a),
        b=model(b),
        same_validation=not caveats,
        caveats=caveats,
        metrics=_sides(
            a.manifest.metrics,
            b.manifest.metrics,
            dict.fromkeys([*a.manifest.metrics, *b.manifest.metrics]),
        ),
        parameters=_sides(ours, theirs, differing),
        features={
            "only_a": [name for name in a.manifest.features if name not in b.manifest.features],
            "only_b": [name for name in b.manifest.features if name not in a.manifest.features],
        },
    )


def _caveats(a: RegistryEntry, b: RegistryEntry) -> Iterator[str]:
    """Yield the reasons why the metrics of both models are not comparable.

    Rows from the cutoff slot on are the validation rows, so the same files and the same cutoff give
    the same rows in any export. Metrics are biased upwards where the validation also chose the
    parameters.
    """
    ours, theirs = a.manifest.lineage, b.manifest.lineage
    first, second = _data_of(ours, theirs)
    if first is None or second is None:
        yield "it is not known what both were validated on"
    elif first != second:
        yield "they were validated on different data"
    cutoffs = [(lineage.get("rows") or {}).get("cutoff_slot") for lineage in (ours, theirs)]
    if None not in cutoffs and cutoffs[0] != cutoffs[1]:
        yield f"their first validation slots differ: {cutoffs[0]} and {cutoffs[1]}"
    specs = [lineage.get("spec") or {} for lineage in (ours, theirs)]
    questions = {"target": "targets", "objective": "objectives"}
    if None in cutoffs:
        questions["validation_share"] = "shares of the newest slots"
    for name, what in questions.items():
        sides = [spec.get(name) for spec in specs]
        if sides[0] != sides[1]:
            yield f"their {what} differ: {sides[0]} and {sides[1]}"
    if bool(ours.get("search")) != bool(theirs.get("search")):
        yield (
            f"the validation chose the parameters of {'a' if ours.get('search') else 'b'} alone:"
            " its figures are too good"
        )


def _data_of(*lineages: Mapping[str, Any]) -> list[object]:
    """Return the data digest of each lineage: of the files, or of the manifest in older models."""
    name = "export_data_sha256"
    if not all(name in lineage for lineage in lineages):
        name = "export_manifest_sha256"
    return [lineage.get(name) for lineage in lineages]


def _parameters(entry: RegistryEntry) -> dict[str, Any]:
    """Return the training parameters as a flat mapping, without the features."""
    lineage = entry.manifest.lineage
    spec: Mapping[str, Any] = lineage.get("spec") or {}
    found: dict[str, Any] = {"trees": entry.manifest.trees} | {
        name: spec[name] for name in spec if name not in {"features", "params"}
    }
    # the parameters found by a search, where there was one
    params = lineage.get("params") or spec.get("params") or {}
    found |= {f"params.{name}": value for name, value in params.items()}
    return found | {
        name: lineage[name]
        for name in ("code_version", "xgboost", "device", "resumed_from")
        if name in lineage
    }


def _sides(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], names: Iterable[str]
) -> dict[str, SidesOut]:
    return {
        name: SidesOut(
            a=ours.get(name),
            b=theirs.get(name),
            difference=_difference(ours.get(name), theirs.get(name)),
        )
        for name in names
    }


def _difference(ours: Any, theirs: Any) -> float | None:
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in (ours, theirs)
    )
    return theirs - ours if numbers else None
