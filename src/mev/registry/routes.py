"""``/api/training/models``."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import FileResponse, HTMLResponse

from mev.auth.audit import DONE, REFUSED, AuditCallback, no_audit, note
from mev.auth.dependencies import ModelsDeploy, ModelsFetch, ModelsRead
from mev.auth.model import Permission, Principal
from mev.core.errors import MevError
from mev.core.query import QueryInt
from mev.registry import card, views
from mev.registry.card import Training
from mev.registry.compare import compare
from mev.registry.errors import ReservedAliasError
from mev.registry.re_sign import Notary
from mev.registry.registry import DEPLOYED, Registry, RegistryEntry
from mev.registry.views import AliasIn, ComparisonOut, ModelOut, ModelsOut

PATH = "/api/training/models"
TrainingOf = Callable[[str], Awaitable[Training | None]]
T = TypeVar("T")
Limit = Annotated[QueryInt, Query(ge=1, le=1000)]
Name = Annotated[str, Query(max_length=64)]
_ROUTED = frozenset({"aliases", "compare"})
"""Path segments under ``/models``, which therefore cannot be aliases."""


async def unknown_training(_model_id: str) -> Training | None:
    """Return None: the default where no trainings are available."""
    return None


def router(
    registry: Registry,
    notary: Notary,
    *,
    training_of: TrainingOf = unknown_training,
    audit: AuditCallback = no_audit,
) -> APIRouter:
    """Return the routes of models; `training_of` returns a model's training while retained."""
    routes = APIRouter(tags=["models"])
    routes.include_router(_reading(registry, training_of), prefix=PATH)
    routes.include_router(_changing(registry, notary, audit), prefix=PATH)

    return routes


def _reading(registry: Registry, training_of: TrainingOf) -> APIRouter:
    routes = APIRouter()

    @routes.get("", summary="List the models, newest first")
    async def models(
        _: ModelsRead,
        archived: Annotated[bool, Query(description="Include archived models.")] = False,
        alias: Annotated[
            str | None, Query(max_length=64, description="Only the model with this alias.")
        ] = None,
        target: Annotated[
            str | None, Query(max_length=128, description="Only models with this target column.")
        ] = None,
        limit: Limit = 100,
        cursor: str | None = None,
    ) -> ModelsOut:
        """`refused` lists models whose manifest is not trusted, with the reason."""
        return await asyncio.to_thread(
            lambda: views.page(
                registry.list(archived=True),
                archived=archived,
                alias=alias,
                learned=target,
                limit=limit,
                cursor=cursor,
            )
        )

    @routes.get("/compare", summary="Compare two models")
    async def compared(_: ModelsRead, a: Name, b: Name) -> ComparisonOut:
        """Each by its id or an alias.

        `same_validation` tells whether both were validated on the same rows.
        """
        return await asyncio.to_thread(lambda: compare(registry.get(a), registry.get(b)))

    @routes.get("/{name}", summary="Show a model")
    async def model(_: ModelsRead, name: str) -> ModelOut:
        """By its id or an alias."""
        return views.model(await asyncio.to_thread(registry.get, name))

    @routes.get("/{name}/card", summary="Show a model's card", response_class=HTMLResponse)
    async def model_card(_: ModelsRead, name: str) -> HTMLResponse:
        """HTML page: purpose, data, metrics, training pictures, lineage, files, limits."""
        entry = await asyncio.to_thread(registry.get, name)
        training = await training_of(entry.manifest.model_id)
        return HTMLResponse(
            await asyncio.to_thread(
                lambda: card.page(entry, training, registry.plots(entry.manifest.model_id))
            ),
            headers={"Cache-Control": "no-cache"},
        )

    @routes.get(
        "/{name}/files/{file}", summary="Download a file of a model", response_class=FileResponse
    )
    async def file(
        who: ModelsFetch,
        name: str,
        file: str,
        if_none_match: Annotated[str, Header(alias="If-None-Match")] = "",
    ) -> Response:
        """Serve a model file; `Range` is supported and `ETag` is the SHA-256 of the whole file.

        Files are `<sha256>.mevt`, `.so`, `.ubj` and `<id>.manifest.json`. With `agents:enrol`
        alone, `.ubj` is not available and the model is named by its id only.
        """
        found = await asyncio.to_thread(
            registry.file if who.may(Permission.MODELS_READ) else registry.agents_file, name, file
        )
        changes = file.endswith(".json")  # re-signing rewrites the manifest
        headers = {
            "ETag": f'"{found.sha256}"',
            "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(found.sha256)).decode()}:",
            "Cache-Control": "private, no-cache"
            if changes
            else "private, immutable, max-age=86400",
        }
        if headers["ETag"] in {
            each.strip().removeprefix("W/") for each in if_none_match.split(",")
        }:
            return Response(status_code=304, headers=headers)
        media_type = "application/json" if changes else "application/octet-stream"
        return FileResponse(
            found.path,
            filename=file,
            stat_result=found.status,
            headers=headers,
            media_type=media_type,
        )

    return routes


def _changing(registry: Registry, notary: Notary, audit: AuditCallback) -> APIRouter:
    routes = APIRouter()

    async def done(
        who: Principal, action: str, about: str, work: Callable[[], T], **details: object
    ) -> T:
        """Audit `work`, run it, and audit its refusal."""
        await audit(who.id, action, about, DONE, details)
        try:
            return await asyncio.to_thread(work)
        except MevError as error:
            await note(audit, who.id, action, about, REFUSED, code=error.code)
            raise

    @routes.put("/aliases/{alias}", summary="Set an alias of a model")
    async def point(who: ModelsDeploy, alias: str, body: AliasIn) -> ModelOut:
        """`champion`, `challenger` and `shadow` are reserved: deployments set them."""
        _check_free(alias)
        await done(
            who, "models.alias", alias, lambda: registry.point(alias, body.model), model=body.model
        )
        return views.model(await asyncio.to_thread(registry.get, alias))

    @routes.delete("/aliases/{alias}", status_code=204, summary="Delete an alias")
    async def forget(who: ModelsDeploy, alias: str) -> None:
        """Succeeds also when the alias does not exist."""
        _check_free(alias)
        await done(who, "models.alias", alias, lambda: registry.point(alias, None), model=None)

    @routes.post("/{name}/archive", summary="Archive a model")
    async def archive(who: ModelsDeploy, name: str) -> ModelOut:
        """Hide the model from the list; its files stay. Refused while the model has an alias."""
        return await changed(who, "models.archive", name, registry.archive)

    @routes.post("/{name}/restore", summary="Restore an archived model")
    async def restore(who: ModelsDeploy, name: str) -> ModelOut:
        """Show the model in the list again."""
        return await changed(
            who, "models.restore", name, lambda model_id: registry.archive(model_id, archived=False)
        )

    @routes.post("/{name}/sign", summary="Sign a model's manifest again")
    async def sign(who: ModelsDeploy, name: str) -> ModelOut:
        """Use after a key rotation.

        A retired key must have signed the manifest while active; all files and scores are checked.
        """
        return views.model(
            await done(who, "models.sign", name[:100], lambda: registry.sign(name, notary))
        )

    async def changed(
        who: Principal, action: str, name: str, work: Callable[[str], RegistryEntry]
    ) -> ModelOut:
        model_id = (await asyncio.to_thread(registry.get, name)).manifest.model_id
        return views.model(await done(who, action, model_id, lambda: work(model_id)))

    return routes


def _check_free(alias: str) -> None:
    if alias in DEPLOYED:
        raise ReservedAliasError(
            f"{alias} says what agents run; a deployment moves it", aliases=sorted(DEPLOYED)
        )
    if alias in _ROUTED:
        raise ReservedAliasError(
            f"{alias!r} has a meaning in paths; take another name", aliases=sorted(_ROUTED)
        )
