"""``/api/training/models``."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import FileResponse, HTMLResponse

from mev.auth.audit import DONE, REFUSED, Audit, no_audit, note
from mev.auth.dependencies import ModelsDeploy, ModelsFetch, ModelsRead
from mev.auth.model import Permission, Principal
from mev.core.errors import MevError
from mev.models import card, views
from mev.models.card import Training
from mev.models.compare import compare
from mev.models.errors import ReservedAliasError
from mev.models.registry import DEPLOYED, Entry, Registry
from mev.models.resign import Notary
from mev.models.style import STYLE
from mev.models.views import AliasIn, ComparisonOut, ModelOut, ModelsOut

PATH = "/api/training/models"
TrainingOf = Callable[[str], Awaitable[Training | None]]
T = TypeVar("T")
Limit = Annotated[int, Query(ge=1, le=1000)]
Name = Annotated[str, Query(max_length=64)]
_ROUTED = frozenset({"aliases", "compare"})
"""Names that are paths here, so that a model of that alias could not be shown."""


async def unknown_training(_model_id: str) -> Training | None:
    """Know of no training."""
    return None


def router(registry: Registry, notary: Notary, *, training_of: TrainingOf = unknown_training, audit: Audit = no_audit) -> APIRouter:
    """Return the routes of models; `training_of` finds the training that made one, while it is there."""
    routes = APIRouter(tags=["models"])
    routes.include_router(_reading(registry, training_of), prefix=PATH)
    routes.include_router(_changing(registry, notary, audit), prefix=PATH)

    @routes.get(card.STYLE_PATH, include_in_schema=False)
    async def style() -> Response:
        return Response(STYLE, media_type="text/css", headers={"Cache-Control": "max-age=3600"})

    return routes


def _reading(registry: Registry, training_of: TrainingOf) -> APIRouter:
    routes = APIRouter()

    @routes.get("", summary="List the models, newest first")
    async def models(
        _: ModelsRead,
        archived: Annotated[bool, Query(description="Those that were archived too.")] = False,
        alias: Annotated[str | None, Query(max_length=64, description="Only the one that this alias names.")] = None,
        target: Annotated[str | None, Query(max_length=128, description="Only those that learned this column.")] = None,
        limit: Limit = 100,
        cursor: str | None = None,
    ) -> ModelsOut:
        """`refused` are those whose manifest is not trusted, with the reason."""
        return await asyncio.to_thread(
            lambda: views.page(registry.list(archived=True), archived=archived, alias=alias, learned=target, limit=limit, cursor=cursor)
        )

    @routes.get("/compare", summary="Compare two models")
    async def compared(_: ModelsRead, a: Name, b: Name) -> ComparisonOut:
        """Each by its id or an alias. `same_validation` says whether the metrics are of the same rows."""
        return await asyncio.to_thread(lambda: compare(registry.get(a), registry.get(b)))

    @routes.get("/{name}", summary="Show a model")
    async def model(_: ModelsRead, name: str) -> ModelOut:
        """By its id or an alias."""
        return views.model(await asyncio.to_thread(registry.get, name))

    @routes.get("/{name}/card", summary="Show a model's card", response_class=HTMLResponse)
    async def model_card(_: ModelsRead, name: str) -> HTMLResponse:
        """A page for people: purpose, data, metrics, pictures of the training, lineage, files, limits."""
        entry = await asyncio.to_thread(registry.get, name)
        training = await training_of(entry.manifest.model_id)
        return HTMLResponse(await asyncio.to_thread(card.page, entry, training), headers={"Cache-Control": "no-cache"})

    @routes.get("/{name}/files/{file}", summary="Download a file of a model", response_class=FileResponse)
    async def file(who: ModelsFetch, name: str, file: str, if_none_match: Annotated[str, Header(alias="If-None-Match")] = "") -> Response:
        """`<sha256>.mevt`, `.so`, `.ubj` and `<id>.manifest.json`; takes `Range`. `ETag` is the SHA-256 of the whole file.

        With `agents:enrol` alone, no `.ubj`, and only by the model's id.
        """
        found = await asyncio.to_thread(registry.file if who.may(Permission.MODELS_READ) else registry.agents_file, name, file)
        changes = file.endswith(".json")  # when it is signed again
        headers = {
            "ETag": f'"{found.sha256}"',
            "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(found.sha256)).decode()}:",
            "Cache-Control": "private, no-cache" if changes else "private, immutable, max-age=86400",
        }
        if headers["ETag"] in {each.strip().removeprefix("W/") for each in if_none_match.split(",")}:
            return Response(status_code=304, headers=headers)
        media_type = "application/json" if changes else "application/octet-stream"
        return FileResponse(found.path, filename=file, stat_result=found.status, headers=headers, media_type=media_type)

    return routes


def _changing(registry: Registry, notary: Notary, audit: Audit) -> APIRouter:
    routes = APIRouter()

    async def done(who: Principal, action: str, about: str, work: Callable[[], T], **details: object) -> T:
        """Do what is in the audit trail by then; that it was refused is there too."""
        await audit(who.id, action, about, DONE, details)
        try:
            return await asyncio.to_thread(work)
        except MevError as error:
            await note(audit, who.id, action, about, REFUSED, code=error.code)
            raise

    @routes.put("/aliases/{alias}", summary="Let an alias name a model")
    async def point(who: ModelsDeploy, alias: str, body: AliasIn) -> ModelOut:
        """`champion`, `challenger` and `shadow` follow what agents run: deployments move them."""
        _check_free(alias)
        await done(who, "models.alias", alias, lambda: registry.point(alias, body.model), model=body.model)
        return views.model(await asyncio.to_thread(registry.get, alias))

    @routes.delete("/aliases/{alias}", status_code=204, summary="Take an alias away")
    async def forget(who: ModelsDeploy, alias: str) -> None:
        """Whether or not it names a model."""
        _check_free(alias)
        await done(who, "models.alias", alias, lambda: registry.point(alias, None), model=None)

    @routes.post("/{name}/archive", summary="Archive a model")
    async def archive(who: ModelsDeploy, name: str) -> ModelOut:
        """It leaves the list; its files stay. Not while an alias names it."""
        return await changed(who, "models.archive", name, registry.archive)

    @routes.post("/{name}/restore", summary="Put an archived model back")
    async def restore(who: ModelsDeploy, name: str) -> ModelOut:
        """It is listed again."""
        return await changed(who, "models.restore", name, lambda model_id: registry.archive(model_id, archived=False))

    @routes.post("/{name}/sign", summary="Sign a model's manifest again")
    async def sign(who: ModelsDeploy, name: str) -> ModelOut:
        """After a key rotation. A retired key must have signed it in its time, every file is checked, every form scores."""
        return views.model(await done(who, "models.sign", name[:100], lambda: registry.sign(name, notary)))

    async def changed(who: Principal, action: str, name: str, work: Callable[[str], Entry]) -> ModelOut:
        model_id = (await asyncio.to_thread(registry.get, name)).manifest.model_id
        return views.model(await done(who, action, model_id, lambda: work(model_id)))

    return routes


def _check_free(alias: str) -> None:
    if alias in DEPLOYED:
        raise ReservedAliasError(f"{alias} says what agents run; a deployment moves it", aliases=sorted(DEPLOYED))
    if alias in _ROUTED:
        raise ReservedAliasError(f"{alias!r} has a meaning in paths; take another name", aliases=sorted(_ROUTED))
