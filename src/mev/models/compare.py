"""Two models side by side: what differs, and whether their metrics can be compared at all."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mev.models.registry import Entry
from mev.models.views import ComparisonOut, SidesOut, model

_MISSING = object()


def compare(a: Entry, b: Entry) -> ComparisonOut:
    """Return how `b` differs from `a`."""
    caveats = list(_caveats(a, b))
    ours, theirs = _parameters(a), _parameters(b)
    differing = [name for name in ours | theirs if ours.get(name, _MISSING) != theirs.get(name, _MISSING)]
    return ComparisonOut(
        a=model(a),
        b=model(b),
        same_validation=not caveats,
        caveats=caveats,
        metrics=_sides(a.manifest.metrics, b.manifest.metrics, dict.fromkeys([*a.manifest.metrics, *b.manifest.metrics])),
        parameters=_sides(ours, theirs, differing),
        features={
            "only_a": [name for name in a.manifest.features if name not in b.manifest.features],
            "only_b": [name for name in b.manifest.features if name not in a.manifest.features],
        },
    )


def _caveats(a: Entry, b: Entry) -> Iterator[str]:
    """Yield why the metrics are of different rows, or of different questions.

    The newest `validation_share` of an export, by slot, validates: the same export and the same share are the same rows. Where they
    chose the parameters too, they flatter.
    """
    ours, theirs = a.manifest.lineage, b.manifest.lineage
    first, second = ours.get("export_manifest_sha256"), theirs.get("export_manifest_sha256")
    if first is None or second is None:
        yield "it is not known what both were validated on"
    elif first != second:
        yield "they were validated on different exports"
    for name, what in (("validation_share", "shares of the newest slots"), ("target", "targets"), ("objective", "objectives")):
        sides = tuple((lineage.get("spec") or {}).get(name) for lineage in (ours, theirs))
        if sides[0] != sides[1]:
            yield f"their {what} differ: {sides[0]} and {sides[1]}"
    if bool(ours.get("search")) != bool(theirs.get("search")):
        yield f"the validation chose the parameters of {'a' if ours.get('search') else 'b'} alone: its figures are too good"


def _parameters(entry: Entry) -> dict[str, Any]:
    """Return what the training was asked for, flat; features are compared for themselves."""
    lineage = entry.manifest.lineage
    spec: Mapping[str, Any] = lineage.get("spec") or {}
    found: dict[str, Any] = {"trees": entry.manifest.trees} | {name: spec[name] for name in spec if name not in {"features", "params"}}
    params = lineage.get("params") or spec.get("params") or {}  # those that it was trained with, where they were searched for
    found |= {f"params.{name}": value for name, value in params.items()}
    return found | {name: lineage[name] for name in ("code_version", "xgboost", "device", "resumed_from") if name in lineage}


def _sides(ours: Mapping[str, Any], theirs: Mapping[str, Any], names: Iterable[str]) -> dict[str, SidesOut]:
    return {
        name: SidesOut(a=ours.get(name), b=theirs.get(name), difference=_difference(ours.get(name), theirs.get(name))) for name in names
    }


def _difference(ours: Any, theirs: Any) -> float | None:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (ours, theirs))
    return theirs - ours if numbers else None
