"""Tests that links between the pages lead to a heading, and that the tests named in them exist."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


_NAMED_TEST = re.compile(r"^(?:(u|i|e)/|tests/)([\w/]+(?:\.py)?)(?:::(\w+))?$")
_FOLDERS = {"u": "unit", "i": "integration", "e": "e2e"}


def prose(page: Path) -> str:
    return _CODE_BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings; a repeated one gets a number."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def missing_tests(page: Path) -> list[str]:
    """Return the names of tests that do not exist; `::name` is in the file named before it."""
    missing, path = [], ROOT
    for text in re.findall(r"`([^`\n]+)`", prose(page)):
        if text.startswith("::test_"):
            name = text[2:]
        elif named := _NAMED_TEST.match(text):
            short, rest, name = named.groups()
            path = ROOT / "tests" / _FOLDERS.get(short, "") / rest
        else:
            continue
        if not path.exists() or (name and f"def {name}(" not in path.read_text()):
            missing.append(text)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_of_page_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_named_in_page_exist(page: Path) -> None:
    assert missing_tests(page) == []


def test_readme_names_every_page() -> None:
    named = set(_LINK.findall(prose(ROOT / "README.md")))
    assert {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"} - named == set()
