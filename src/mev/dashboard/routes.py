"""Routes of the dashboard's files: the page at ``/``, its scripts and styles below it.

The files contain no data, so they are public; every figure on the page comes from the API, which
requires a login.
"""

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated

from fastapi import APIRouter, Header, Response

from mev.core.errors import NotFoundError

ASSETS = "/dashboard/assets/"
_PAGE = "index.html"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_FOREVER = "public, max-age=31536000, immutable"  # the names contain a hash
# In addition to the policy of all pages: strings cannot become HTML or scripts. `mev-worker` is the
# policy of the page's own Worker.
_TRUSTED_TYPES = "require-trusted-types-for 'script'; trusted-types mev-worker; worker-src 'self'"


class UnknownAssetError(NotFoundError):
    """The dashboard has no such file."""

    code = "unknown_file"


@dataclass(frozen=True, slots=True)
class _File:
    media_type: str
    content: bytes
    compressed: bytes
    etag: str


def router() -> APIRouter:
    """Return the routes; the files are read once."""
    routes = APIRouter(include_in_schema=False)
    files = {name: _file(name, content) for name, content in _contents()}

    @routes.get("/")
    async def page(
        accept_encoding: Annotated[str, Header()] = "", if_none_match: Annotated[str, Header()] = ""
    ) -> Response:
        """Return the page; a browser asks each time whether it has changed."""
        response = _answer(files.get(_PAGE), accept_encoding, if_none_match)
        response.headers["Cache-Control"] = "no-cache"
        response.headers.append("Content-Security-Policy", _TRUSTED_TYPES)
        return response

    @routes.get(ASSETS + "{name}")
    async def asset(
        name: str,
        accept_encoding: Annotated[str, Header()] = "",
        if_none_match: Annotated[str, Header()] = "",
    ) -> Response:
        """Return a script, a style sheet or an icon."""
        response = _answer(files.get(f"assets/{name}"), accept_encoding, if_none_match)
        response.headers["Cache-Control"] = _FOREVER
        return response

    return routes


def _answer(file: _File | None, accept_encoding: str, if_none_match: str) -> Response:
    if file is None:
        raise UnknownAssetError("the dashboard has no such file; reload the page")
    headers = {"ETag": file.etag, "Vary": "Accept-Encoding"}
    if if_none_match == file.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in accept_encoding:
        headers["Content-Encoding"] = "gzip"
        return Response(file.compressed, media_type=file.media_type, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def _contents() -> Iterator[tuple[str, bytes]]:
    folder = resources.files("mev.dashboard") / "static"
    for each in _entries(folder):
        yield each.name, each.read_bytes()
    for each in _entries(folder / "assets"):
        yield f"assets/{each.name}", each.read_bytes()


def _entries(folder: Traversable) -> list[Traversable]:
    return [each for each in folder.iterdir() if each.is_file()] if folder.is_dir() else []


def _file(name: str, content: bytes) -> _File:
    return _File(
        media_type=_MEDIA_TYPES.get(name.rpartition(".")[2], "application/octet-stream"),
        content=content,
        compressed=gzip.compress(content, mtime=0),
        etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )
