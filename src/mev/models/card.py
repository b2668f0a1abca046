"""The card of a model: a page for people who decide whether agents should run it.

It needs nothing but its stylesheet: no script, and pictures are part of it. Whatever it shows was escaped on the way.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from mev.models.html import Html, element, joined
from mev.models.registry import Entry
from mev.predict.manifest import Manifest
from mev.wire.features import FEATURE_SCHEMAS

STYLE_PATH = "/docs/assets/model-card.css"
_SOL = 1e9
_SHORT = 12
_METRICS = {
    "auc": ("AUC", "how often a good row scores above a bad one; 0.5 is chance"),
    "pr_auc": ("PR-AUC", "mean precision over all recalls; chance is the base rate"),
    "log_loss": ("Log loss", "of the probabilities; less is better"),
    "brier": ("Brier score", "mean squared error of the probabilities; less is better"),
    "calibration_error": ("Calibration error", "mean distance between predicted and observed"),
    "base_rate": ("Base rate", "share of the validation rows whose target is 1"),
    "best_threshold": ("Best threshold", "rows at or above it made the most together"),
    "best_profit_lamports": ("Profit at it", "of the validation rows at or above the best threshold"),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The training that made a model, as long as it is there; `result` is all that it left, `pictures` are by name, each SVG or PNG."""

    job_id: str
    owner: str
    ended_at: str
    result: Mapping[str, Any]
    pictures: Mapping[str, bytes] = field(repr=False)


def page(entry: Entry, training: Training | None) -> str:
    """Return the card of a model, and of its training where that is still there."""
    manifest = entry.manifest
    result: Mapping[str, Any] = training.result if training else {}
    body = element(
        "main",
        _head(entry),
        _section("What it is for", *_purpose(manifest)),
        _section("How good it is", *_metrics(manifest)),
        _pictures(training),
        _section("What it looks at", _features(manifest, _kept(manifest, result, "importance"))),
        _section("What it was trained on", *_data(manifest, result)),
        _section("How it was trained", *_lineage(manifest, training)),
        _section("Files", *_files(manifest)),
        _section("Limits", _limits(manifest)),
        element("footer", "Everything here is from the signed manifest", " and the training that made it." if training else "."),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"Model {manifest.model_id[:_SHORT]}"),
        element("link", rel="stylesheet", href=STYLE_PATH),
        element("link", rel="icon", href="data:,"),  # or browsers ask for one that is not there
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', body), lang='en')}\n"


def _head(entry: Entry) -> Html:
    manifest = entry.manifest
    chips = [element("span", alias, class_=f"chip {alias}") for alias in entry.aliases]
    if entry.archived_at:
        chips.append(element("span", f"archived {entry.archived_at[:10]}", class_="chip archived"))
    spec = _spec(manifest)
    subtitle = (
        f"{spec.get('target', 'a target that is not known')} from {_many(len(manifest.features), 'feature')} of "
        f"{manifest.feature_schema}; {_many(manifest.trees, 'tree')}, {manifest.objective}"
    )
    return element(
        "header",
        element("p", "Model card", class_="eyebrow"),
        element("h1", manifest.model_id[:_SHORT], *chips),
        element("p", subtitle, class_="subtitle"),
        element("p", element("code", manifest.model_id), class_="digest"),
    )


def _purpose(manifest: Manifest) -> Iterable[Html]:
    target = element("code", _spec(manifest).get("target", "the target"))
    if manifest.objective == "binary:logistic":
        what = joined("A score between 0 and 1 for an opportunity, when it is decided on: how likely it is that ", target, " will be 1.")
    elif manifest.objective.startswith("rank:"):
        what = joined("A score that puts opportunities in order by ", target, ". It is no probability, and no amount.")
    else:
        what = joined("An estimate of ", target, " for an opportunity, when it is decided on.")
    yield element("p", what, " Strategies take it as one of their inputs; agents score with it only after a deployment says so.")
    yield element(
        "p", "It is for no other question, no other market, and no features but those of the schema below, computed as agents compute them."
    )


def _metrics(manifest: Manifest) -> Iterable[Html]:
    numbers = {name: value for name, value in manifest.metrics.items() if _is_number(value)}
    if not numbers:
        yield element("p", "Nothing was measured.", class_="empty")
        return
    tiles = []
    for name in [*(name for name in _METRICS if name in numbers), *(name for name in numbers if name not in _METRICS)]:
        label, meaning = _METRICS.get(name, (name.replace("_", " "), None))
        explained = element("span", meaning, class_="meaning") if meaning else None
        tiles.append(
            element("div", element("span", label, class_="label"), element("span", _shown(name, numbers[name]), class_="value"), explained)
        )
    yield element("p", "On rows that it did not learn from, newer than all that it did.")
    yield element("div", *tiles, class_="tiles")


def _pictures(training: Training | None) -> Html | None:
    if training is None or not training.pictures:
        return None
    there = [name for name in training.pictures if name not in _DRAWN_HERE]
    order = [*(name for name in _PICTURES if name in there), *(name for name in there if name not in _PICTURES)]
    figures = []
    for name in order:
        caption, content = _PICTURES.get(name, name.replace("_", " ")), training.pictures[name]
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/svg+xml"  # in an image no script runs, whatever it holds
        source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        figures.append(element("figure", element("img", src=source, alt=caption)))
    return _section("Pictures of its training", element("div", *figures, class_="pictures"))


def _features(manifest: Manifest, importance: Mapping[str, float]) -> Html:
    schema = FEATURE_SCHEMAS.get(manifest.feature_schema)
    known = {each.name: each for each in schema.features} if schema else {}
    most = max(importance.values(), default=0) or 1
    columns, rows = ["feature", ""], []
    columns += ["missing"] if manifest.baseline else []
    columns += ["what it adds or takes on average"] if importance else []
    for name in sorted(manifest.features, key=lambda name: -importance.get(name, 0)):
        feature = known.get(name)
        unit = f" ({feature.unit})" if feature and feature.unit else ""
        row: list[object] = [element("code", name), f"{feature.description}{unit}" if feature else ""]
        row += [f"{manifest.baseline.features[name].missing:.1%}"] if manifest.baseline else []
        row += [_bar(importance.get(name, 0) / most, f"{importance.get(name, 0):.3g}")] if importance else []
        rows.append(row)
    return joined(
        None if importance else element("p", "How much each feature moves the score is not in its manifest, and its training is not kept."),
        _table(columns, rows),
        _pairs([("schema", joined(f"{manifest.feature_schema} ", _digest(manifest.feature_schema_hash)))]),
    )


def _bar(share: float, text: str) -> Html:
    rect = element("rect", width=f"{round(share * 100)}", height="8", rx="2")
    return element("span", element("svg", rect, viewBox="0 0 100 8", width="100", height="8", aria_hidden="true"), text, class_="bar")


def _data(manifest: Manifest, result: Mapping[str, Any]) -> Iterable[Html]:
    lineage, spec, rows = manifest.lineage, _spec(manifest), _kept(manifest, result, "rows")
    export = lineage.get("export_manifest_sha256")
    pairs: list[tuple[str, object]] = [("export", _digest(export) if export else "not known")]
    if rows:
        parts = [f"{rows[name]:,} {what}" for name, what in _ROWS.items() if name in rows]
        pairs += [("rows", ", ".join(parts)), ("validated from slot", rows.get("cutoff_slot"))]
    if rows.get("simulated"):
        pairs.append(("simulated", f"{rows['simulated']:,} of these rows are of a simulator: its worth on chain is not known"))
    if "validation_share" in spec:
        pairs.append(("validated on", f"the newest {100 * spec['validation_share']:g} % of the rows, by slot"))
    if "embargo_slots" in spec:
        pairs.append(("left out before them", f"{spec['embargo_slots']} slots"))
    yield _pairs(pairs)
    yield element("p", "The digest is that of the export's manifest, which names every file with its own: these exact bytes were read.")


_ROWS = {"train": "to learn from", "embargo": "left out", "validation": "to validate with"}


def _lineage(manifest: Manifest, training: Training | None) -> Iterable[Html]:
    lineage, spec = manifest.lineage, _spec(manifest)
    environment = {name: value for name, value in lineage.items() if name not in _SHOWN_ELSEWHERE}
    params = lineage.get("params") or spec.get("params") or {}
    pairs: list[tuple[str, object]] = [("registered", manifest.created_at[:19].replace("T", " ") + " UTC")]
    job_id, owner = lineage.get("job") or (training and training.job_id), lineage.get("trained_by") or (training and training.owner)
    pairs.append(("trained by", owner or "not known: its manifest does not say, and its job is not kept"))
    pairs.append(("training", element("code", job_id) if job_id else None))
    pairs.append(("ended", training.ended_at if training and training.job_id == job_id else None))
    yield _pairs(pairs)
    yield element("h3", "Environment")
    yield _pairs(_flat(environment))
    if spec:
        yield element("h3", "What was asked for")
        yield _pairs(_flat({name: value for name, value in spec.items() if name not in {"params", "features"}}))
    if params:
        yield element("h3", "Parameters of XGBoost")
        yield _pairs(_flat(params))


_SHOWN_ELSEWHERE = frozenset({"spec", "params", "export_manifest_sha256", "rows", "importance", "job", "trained_by"})


def _kept(manifest: Manifest, result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return what the lineage has under that name; in manifests of before it was there, what the training left."""
    found = manifest.lineage.get(name) or result.get(name)
    return found if isinstance(found, Mapping) else {}


def _files(manifest: Manifest) -> Iterable[Html]:
    forms = {"mevt": "data only; what agents load", "so": f"native code for {manifest.cpu}", "ubj": "what XGBoost saved"}
    rows: list[tuple[object, ...]] = []
    for form, what in forms.items():
        if (digest := manifest.digest(form)) is not None:
            rows.append((element("a", f".{form}", href=f"files/{digest}.{form}"), what, _digest(digest)))
    signed = f"{manifest.model_id}.manifest.json"
    rows.append((element("a", "manifest", href=f"files/{signed}"), "all that is known of it, signed", ""))
    yield _table(("file", "", "SHA-256"), rows)
    yield element(
        "p",
        f"Parity: {manifest.parity.rows:,} rows, half of them with gaps, were scored by XGBoost and by each form that scores; "
        f"the worst score was off by {manifest.parity.max_abs_diff:.3g}. "
        f"{len(manifest.golden_scores)} of them are scored again at every load.",
    )


def _limits(manifest: Manifest) -> Html:
    lines = [
        "It has learned from opportunities that a bundle was sent for. Of those that nobody tried it knows nothing.",
        "Its validation is of the past. Agents compare what they see with what it was trained on; when that drifts, train again.",
        "The profit above is of bundles that were sent; another threshold would also have changed what others did.",
    ]
    if manifest.objective == "binary:logistic":
        lines.append("Its scores are probabilities only as far as the calibration says, and only for rows like those it was validated on.")
    if manifest.lineage.get("search"):
        lines.append("Its parameters were chosen by the validation that the figures above are of: they are a little too good.")
    if manifest.mevt_sha256 is None:
        lines.append(f"It has no data-only form: agents need processors of kind {manifest.cpu} and run native code.")
    if manifest.lineage.get("resumed_from") is not None:
        lines.append("Its training was interrupted and went on: with sampling, a second run makes another model of the same kind.")
    return element("ul", *(element("li", line) for line in lines))


def _section(title: str, *inner: object) -> Html:
    return element("section", element("h2", title), *inner)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    head = element("thead", element("tr", *(element("th", column) for column in columns)))
    body = element("tbody", *(element("tr", *(element("td", cell) for cell in row)) for row in rows))
    return element("div", element("table", head, body), class_="scroll")


def _pairs(pairs: Iterable[tuple[str, object]]) -> Html:
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs if value is not None))


def _digest(sha256: object) -> Html:
    return element("code", sha256, class_="digest")


def _spec(manifest: Manifest) -> Mapping[str, Any]:
    spec = manifest.lineage.get("spec")
    return spec if isinstance(spec, Mapping) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(name: str, value: float) -> str:
    return f"{value / _SOL:,.3f} SOL" if name.endswith("_lamports") else f"{value:.4g}"


def _flat(content: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    """Yield names and values, those of an inner object under their own names."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name.replace("_", " "), _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
