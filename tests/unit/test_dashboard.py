"""Tests of the dashboard's built files and their delivery."""

import gzip
import re
from importlib import resources
from pathlib import Path
from typing import cast

import httpx
import pytest
from fastapi import FastAPI

from mev.dashboard.routes import UnknownAssetError, router

STATIC = Path(cast("Path", resources.files("mev.dashboard") / "static"))
FIRST_VIEW_BYTES, ALL_BYTES = 130_000, 250_000


def client() -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(router())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://dashboard")


def compressed(name: str) -> int:
    """Return the size of a file as it is sent."""
    return len(gzip.compress((STATIC / name.lstrip("/")).read_bytes()))


def first_view() -> set[str]:
    """Return the files that the page loads before anything is clicked."""
    page = (STATIC / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="/dashboard/(assets/[^"]+)"', page))
    scripts = "".join((STATIC / name).read_text() for name in named if name.endswith(".js"))
    return named | {f"assets/{name}" for name in re.findall(r"worker-[\w-]+\.js", scripts)}


def test_first_view_and_all_files_are_within_the_budget() -> None:
    loaded = first_view()
    assert any("worker" in name for name in loaded)
    assert sum(map(compressed, loaded)) <= FIRST_VIEW_BYTES
    files = [f"assets/{each.name}" for each in (STATIC / "assets").iterdir()]
    assert sum(map(compressed, files)) <= ALL_BYTES


def test_no_file_names_another_host() -> None:
    for file in (STATIC / "assets").glob("*.js"):
        hosts = set(re.findall(r"https?://([\w.-]+)", file.read_text()))
        # Names of XML, texts of errors, and the explorer that a person may click on.
        assert hosts <= {"www.w3.org", "svelte.dev", "solscan.io"}, file.name


async def test_page_has_trusted_types_and_is_checked_each_time() -> None:
    async with client() as http:
        page = await http.get("/", headers={"Accept-Encoding": "identity"})
        assert "require-trusted-types-for 'script'" in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "no-cache"
        again = await http.get("/", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_assets_are_kept_by_browsers_and_compressed_on_request(encoding: str) -> None:
    async with client() as http:
        for name in first_view():
            answer = await http.get(f"/dashboard/{name}", headers={"Accept-Encoding": encoding})
            assert answer.content == (STATIC / name).read_bytes()
            assert "immutable" in answer.headers["cache-control"]
            assert answer.headers.get("content-encoding", "identity") == encoding


@pytest.mark.parametrize("name", ["missing.js", "index.html", "%2e%2e"])
async def test_unknown_file_is_refused(name: str) -> None:
    async with client() as http:
        with pytest.raises(UnknownAssetError):
            await http.get(f"/dashboard/assets/{name}")
