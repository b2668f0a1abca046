"""Tests of the model card: content, no inline scripts, and no markup from a manifest."""

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from mev.registry.card import Training, page
from mev.registry.registry import RegistryEntry
from mev.scoring.drift import Baseline
from tests.unit.registry.samples import Made, rows

EVIL = """<script>alert(1)</script>"'><img src=x onerror=alert(1)>"""
ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "link",
    "style",
    "body",
    "main",
    "header",
    "footer",
    "section",
    "div",
    "span",
    "p",
    "h1",
    "h2",
    "h3",
}
ALLOWED |= {
    "code",
    "a",
    "ul",
    "li",
    "dl",
    "dt",
    "dd",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "figure",
    "img",
    "svg",
    "rect",
}


class Reader(HTMLParser):
    """Reads a page, and notes what stands in it."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{' '.join(data.split())} "


def training(**changes: Any) -> Training:
    result = {
        "importance": {"rivals": 0.5, "tip_share": 0.25},
        "rows": {
            "train": 1120,
            "embargo": 10,
            "validation": 600,
            "simulated": 700,
            "cutoff_slot": 77,
        },
    }
    given = {
        "job_id": "job-1",
        "owner": "ada",
        "ended_at": "2026-08-01 UTC",
        "result": result,
        "pictures": {"extra": b"<svg/>", "roc": b"\x89PNG"},
    }
    return Training(**{**given, **changes})


def card(made: Made, training: Training | None = None, **changes: Any) -> Reader:
    read = Reader(
        page(
            RegistryEntry(
                manifest=replace(made.manifest, **changes),
                aliases=("champion", "best"),
                archived_at=None,
            ),
            training,
        )
    )
    assert read.open == []
    assert read.tags <= ALLOWED
    assert not [name for name, _ in read.attributes if name == "style" or name.startswith("on")]
    return read


def test_a_card_says_what_is_known(original: Made) -> None:
    manifest = original.manifest
    lineage = {
        "export_manifest_sha256": "e" * 64,
        "environment": {"packages": {"numpy": "9.9"}},
        "search": {"trials": 41},
    }
    lineage |= {"spec": {"target": "landed", "params": {"eta": 0.3}}, "params": {"eta": 0.17}}
    metrics = {
        "auc": 0.8125,
        "best_profit_lamports": 2.5e9,
        "calibration_error": 0.03125,
        "precision_at_k": 0.5,
    }
    spread = Baseline.of(rows(500, 3), rows(500, 3)[:, 0], manifest.features)
    read = card(original, training(), lineage=lineage, metrics=metrics, baseline=spread)
    for text in (
        *(
            manifest.model_id,
            manifest.model_id[:12],
            "champion",
            "best",
            "landed",
            "e" * 64,
            "numpy",
            "9.9",
            "41",
            "eta",
            "0.17",
            "too good",
            "ada",
            "job-1",
        ),
        *(
            "0.8125",
            "2.500 SOL",
            "0.03125",
            "precision at k",
            "1,120 to learn from",
            "700 of these rows are of a simulator",
            "600 to validate with",
            "77",
            "1,000 rows",
        ),
        *(
            manifest.feature_schema_hash,
            *manifest.features,
            "0.25",
            "Bots seen after the same opportunity.",
        ),
        *(digest for form in ("mevt", "so", "ubj") if (digest := manifest.digest(form))),
    ):
        assert text in read.text, text
    hrefs = {value for name, value in read.attributes if name == "href"}
    files = {f"files/{manifest.digest(form)}.{form}" for form in ("mevt", "so", "ubj")}
    assert hrefs == {"data:,", f"files/{manifest.model_id}.manifest.json", *files}
    sources = [value for name, value in read.attributes if name == "src"]
    assert sources == ["data:image/png;base64,iVBORw==", "data:image/svg+xml;base64,PHN2Zy8+"]


def test_without_its_training_a_card_says_so(original: Made) -> None:
    read = card(original)
    assert "its job is not kept" in read.text
    assert "its training is not kept" in read.text
    assert "img" not in read.tags
    assert "Nothing was measured." in card(original, metrics={}).text


def test_a_card_keeps_what_the_lineage_has_when_the_training_is_gone(original: Made) -> None:
    rows = {"train": 1130, "embargo": 11, "validation": 610, "cutoff_slot": 78}
    lineage = {
        "job": "job-7",
        "trained_by": "grace",
        "rows": rows,
        "importance": {"rivals": 0.375, "tip_share": 0.25},
    }
    for training_there in (None, training()):
        read = card(original, training_there, lineage=lineage)
        for text in (
            "grace",
            "job-7",
            "0.375",
            "1,130 to learn from",
            "610 to validate with",
            "78",
        ):
            assert text in read.text, text
        for text in (
            "not kept",
            "ada",
            "job-1",
            "2026-08-01 UTC",
        ):  # of another training that made the same model
            assert text not in read.text, text


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("binary:logistic", "between 0 and 1"),
        ("reg:squarederror", "An estimate of"),
        ("rank:ndcg", "in order by"),
    ],
)
def test_a_card_says_what_a_score_is(original: Made, objective: str, said: str) -> None:
    assert said in card(original, objective=objective).text


def test_nothing_in_a_manifest_or_training_becomes_markup(original: Made) -> None:
    lineage = {
        EVIL: EVIL,
        "export_manifest_sha256": EVIL,
        "spec": {"target": EVIL, EVIL: [EVIL], "params": {EVIL: {EVIL: EVIL}}},
    }
    manifest = {
        "features": (EVIL, "rivals"),
        "feature_schema": EVIL,
        "feature_schema_hash": EVIL,
        "objective": EVIL,
        "cpu": EVIL,
    }
    about = {
        "job_id": EVIL,
        "owner": EVIL,
        "ended_at": EVIL,
        "pictures": {EVIL: b""},
        "result": {"importance": {EVIL: 1.0}, "rows": {}},
    }
    read = card(
        original,
        training(**about),
        lineage=lineage,
        metrics={EVIL: 1.0},
        created_at=EVIL,
        baseline=None,
        **manifest,
    )
    assert read.text.count("<script>") > 10
    entry = RegistryEntry(manifest=original.manifest, aliases=(EVIL,), archived_at=EVIL)
    assert Reader(page(entry, None)).tags <= ALLOWED
