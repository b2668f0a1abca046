"""Model card: an HTML page for people who decide whether to deploy a model.

The page is the template ``templates/card.html``: one file with inlined style and pictures and
without scripts. All values are escaped.
"""

import base64
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from mev.core.text import is_money, sol
from mev.registry.registry import RegistryEntry
from mev.registry.style import STYLE
from mev.scoring.manifest import Manifest
from mev.wire.features import FEATURE_SCHEMAS

_SHORT = 12
_METRICS = {
    "auc": ("AUC", "how often a good row scores above a bad one; 0.5 is chance"),
    "pr_auc": ("PR-AUC", "mean precision over all recalls; chance is the base rate"),
    "log_loss": ("Log loss", "of the probabilities; less is better"),
    "brier": ("Brier score", "mean squared error of the probabilities; less is better"),
    "calibration_error": ("Calibration error", "mean distance between predicted and observed"),
    "base_rate": ("Base rate", "share of the validation rows whose target is 1"),
    "best_threshold": ("Best threshold", "rows at or above it made the most together"),
    "recommended_min_score": (
        "Recommended min_score",
        "0 takes all: rows below the best threshold lost no more than by chance",
    ),
    "best_profit_lamports": (
        "Profit at it",
        "of the validation rows at or above the best threshold",
    ),
    "all_profit_lamports": ("Profit of all", "of all validation rows"),
    "ndcg_1": ("NDCG@1", "how good the first of each slot is, against the best one"),
    "ndcg_5": ("NDCG@5", "how good the order of the first five of each slot is"),
    "best_first": ("Best one first", "share of the slots where the best one is the first"),
    "best_first_by_chance": ("By chance", "the same, had they been drawn"),
    "ranked_slots": ("Slots", "with something to rank"),
    "first_profit_lamports": ("Profit of the first", "what the first of each slot made together"),
    "chance_profit_lamports": ("Profit by chance", "one of each slot, drawn"),
    "ideal_profit_lamports": ("Profit of the best", "the best of each slot; more cannot be made"),
    "rmse": ("RMSE", "root of the mean squared error; less is better"),
    "mae": ("MAE", "mean absolute error; less is better"),
    "r2": ("R²", "share of the variance that is explained"),
}
_PICTURES = {
    "roc": "ROC",
    "precision_recall": "Precision by recall",
    "calibration": "Calibration",
    "profit": "Profit by threshold",
    "learning": "Validation by round",
}
_DRAWN_HERE = frozenset({"importance"})
_ROWS = {"train": "to learn from", "embargo": "left out", "validation": "to validate with"}
_SHOWN_ELSEWHERE = frozenset(
    {
        "spec",
        "params",
        "export_manifest_sha256",
        "rows",
        "importance",
        "intervals",
        "warnings",
        "job",
        "trained_by",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The training job that made a model, while it is retained.

    `result` is its result file; `pictures` are SVG or PNG files by name.
    """

    job_id: str
    owner: str
    ended_at: str
    result: Mapping[str, Any]
    pictures: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Metric:
    label: str
    value: str
    interval: tuple[str, str] | None
    meaning: str | None


@dataclass(frozen=True, slots=True)
class _Picture:
    source: str
    caption: str


@dataclass(frozen=True, slots=True)
class _Feature:
    name: str
    description: str
    missing: str
    importance: str
    bar_width: int


def page(
    entry: RegistryEntry, training: Training | None, plots: Mapping[str, bytes] | None = None
) -> str:
    """Return the card of a model, with its training where that is available.

    `plots` are by file name; those of the training are shown for models registered without plots.
    """
    manifest = entry.manifest
    lineage = manifest.lineage
    result: Mapping[str, Any] = training.result if training else {}
    spec, rows = _spec(manifest), _kept(manifest, result, "rows")
    importance = _kept(manifest, result, "importance")
    params = lineage.get("params") or spec.get("params") or {}
    return _template().render(
        style=Markup(STYLE),  # noqa: S704 - our own
        counted=_counted,
        manifest=manifest,
        short_id=manifest.model_id[:_SHORT],
        aliases=entry.aliases,
        archived_at=entry.archived_at,
        lineage=lineage,
        spec=spec,
        training=training,
        metrics=list(_metrics(manifest)),
        pictures=list(_pictures(_stems(plots) or (training.pictures if training else {}))),
        features=list(_features(manifest, importance)),
        has_importance=bool(importance),
        rows=rows,
        row_parts=", ".join(
            f"{rows[name]:,} {what}" for name, what in _ROWS.items() if name in rows
        ),
        simulated=f"{rows['simulated']:,}" if rows.get("simulated") else None,
        validation_percent=f"{100 * spec.get('validation_share', 0):g}",
        job_id=lineage.get("job") or (training and training.job_id),
        owner=lineage.get("trained_by") or (training and training.owner),
        environment=list(_flat(lineage, _SHOWN_ELSEWHERE)),
        requested=list(_flat(spec, {"params", "features"})),
        params=list(_flat(params)),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("mev.registry"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.html")


def _metrics(manifest: Manifest) -> Iterable[_Metric]:
    numbers = {name: value for name, value in manifest.metrics.items() if _is_number(value)}
    intervals = manifest.lineage.get("intervals") or {}
    for name in [
        *(name for name in _METRICS if name in numbers),
        *(name for name in numbers if name not in _METRICS),
    ]:
        label, meaning = _METRICS.get(name, (name.replace("_", " "), None))
        bounds = intervals.get(name)
        interval = (_shown(name, bounds[0]), _shown(name, bounds[1])) if bounds else None
        yield _Metric(label, _shown(name, numbers[name]), interval, meaning)


def _stems(plots: Mapping[str, bytes] | None) -> dict[str, bytes]:
    return {name.partition(".")[0]: content for name, content in (plots or {}).items()}


def _pictures(pictures: Mapping[str, bytes]) -> Iterable[_Picture]:
    there = [name for name in pictures if name not in _DRAWN_HERE]
    for name in [
        *(name for name in _PICTURES if name in there),
        *(name for name in there if name not in _PICTURES),
    ]:
        content = pictures[name]
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/svg+xml"
        source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        yield _Picture(source, _PICTURES.get(name, name.replace("_", " ")))


def _features(manifest: Manifest, importance: Mapping[str, float]) -> Iterable[_Feature]:
    """Yield the features, the most important ones first."""
    schema = FEATURE_SCHEMAS.get(manifest.feature_schema)
    known = {each.name: each for each in schema.features} if schema else {}
    most = max(importance.values(), default=0) or 1
    for name in sorted(manifest.features, key=lambda name: -importance.get(name, 0)):
        feature, moves = known.get(name), importance.get(name, 0)
        unit = f" ({feature.unit})" if feature and feature.unit else ""
        baseline = manifest.baseline
        yield _Feature(
            name=name,
            description=f"{feature.description}{unit}" if feature else "",
            missing=f"{baseline.features[name].missing:.1%}" if baseline else "",
            importance=f"{moves:.3g}",
            bar_width=round(100 * moves / most),
        )


def _kept(manifest: Manifest, result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return `name` from the lineage, or from the training result for older manifests."""
    found = manifest.lineage.get(name) or result.get(name)
    return found if isinstance(found, Mapping) else {}


def _spec(manifest: Manifest) -> Mapping[str, Any]:
    spec = manifest.lineage.get("spec")
    return spec if isinstance(spec, Mapping) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(name: str, value: float) -> str:
    return sol(value) if is_money(name) else f"{value:.4g}"


def _flat(content: Mapping[str, Any], without: Container[str] = ()) -> Iterable[tuple[str, str]]:
    """Yield names and values, but those of `without`; nested objects are flattened."""
    for name, value in content.items():
        if name in without:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name.replace("_", " "), _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
