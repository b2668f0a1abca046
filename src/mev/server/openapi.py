"""The OpenAPI document, and a page to read and try it.

The page needs no external files and has no inline script.
"""

import warnings
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, cast

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from mev.auth.dependencies import DocsRead
from mev.auth.model import Permission

Access = Mapping[tuple[str, str], Permission | None]
_ASSETS = "/docs/assets"
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>MEV control plane</title>
<link rel="stylesheet" href="{_ASSETS}/swagger-ui.css">
<link rel="icon" href="{_ASSETS}/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{_ASSETS}/swagger-ui-bundle.js"></script>
<script src="{_ASSETS}/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
});
"""


def add_docs(
    app: FastAPI,
    raw_routes: Mapping[tuple[str, str], Mapping[str, Any]],
    access: Callable[[], Access],
) -> None:
    """Serve the OpenAPI document of `app`, extended with raw routes and access rules.

    `raw_routes` are operations by method and path; `access` returns the permission of each.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = _without_head(generate)
            for (method, path), operation in raw_routes.items():
                document["paths"].setdefault(path, {})[method.lower()] = operation
            _describe_access(document, access())
        return cast("dict[str, Any]", app.openapi_schema)

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    async def document(_: DocsRead) -> dict[str, Any]:
        return openapi()

    @app.get("/docs", include_in_schema=False)
    async def docs(_: DocsRead) -> HTMLResponse:
        return HTMLResponse(_PAGE)

    @app.get(f"{_ASSETS}/start.js", include_in_schema=False)
    async def start() -> Response:
        return Response(_START, media_type="text/javascript")

    app.mount(
        _ASSETS,
        StaticFiles(directory=cast("Any", resources.files("fastapi_swagger") / "resources")),
    )


def _without_head(generate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the document without HEAD operations, which would repeat the operation ids of GET."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Duplicate Operation ID")
        document = generate()
    for operations in document["paths"].values():
        operations.pop("head", None)
    return document


def _describe_access(document: dict[str, Any], access: Access) -> None:
    """Add the authentication schemes, and the permission that each operation requires."""
    document.setdefault("components", {})["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "AccessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    }
    document["security"] = [{"ApiKey": []}, {"AccessToken": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            permission = access[method.upper(), path]
            operations[method] = {
                **operation,
                **({"x-permission": permission.value} if permission else {"security": []}),
            }
