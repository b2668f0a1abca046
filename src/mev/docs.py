"""The OpenAPI document, and a page to read and try it that needs no file from elsewhere and no script inside it."""

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


def add_docs(app: FastAPI, lanes: Mapping[tuple[str, str], Mapping[str, Any]], access: Callable[[], Access]) -> None:
    """Serve the document of `app`, with the operations of `lanes` by method and path, and what `access` says each asks for."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for (method, path), operation in lanes.items():
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

    app.mount(_ASSETS, StaticFiles(directory=cast("Any", resources.files("fastapi_swagger") / "resources")))


def _describe_access(document: dict[str, Any], access: Access) -> None:
    """Say how to say who one is, and which permission each operation asks for."""
    document.setdefault("components", {})["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "AccessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    }
    document["security"] = [{"ApiKey": []}, {"AccessToken": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            permission = access[method.upper(), path]
            operations[method] = {**operation, **({"x-permission": permission.value} if permission else {"security": []})}
