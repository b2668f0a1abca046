"""Routes below ``/api/datasets``."""

import asyncio
import base64
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from mev.auth.audit import AuditCallback, no_audit, note
from mev.auth.dependencies import DatasetsExport, DatasetsRead
from mev.datasets import manifest, views
from mev.datasets.catalog import DATASETS
from mev.datasets.service import Exports
from mev.datasets.views import DatasetsOut, EstimateOut, ExportIn, ExportOut
from mev.jobs.model import Job
from mev.jobs.routes import check_may_end, owner, shown
from mev.jobs.runner import Runner
from mev.wire.registry import event_type

PATH = "/api/datasets"


def router(exports: Exports, runner: Runner, *, audit: AuditCallback = no_audit) -> APIRouter:
    """Return the routes of datasets."""
    routes = APIRouter(prefix=PATH, tags=["datasets"])

    @routes.get("", summary="List the datasets")
    async def datasets(_: DatasetsRead) -> DatasetsOut:
        """Return the stored rows of each dataset, with their first and last slot and time."""
        return DatasetsOut(
            items=[views.dataset(each) for each in await asyncio.to_thread(exports.summaries)]
        )

    @routes.get("/schema/{type}", summary="Describe a dataset type")
    async def schema(_: DatasetsRead, type: str) -> dict[str, Any]:  # noqa: A002 - the public name
        """Return the fields with types, units and descriptions, and the JSON Schema of one event.

        They are those of the Protobuf sources.
        """
        return (
            found.schema() if (found := DATASETS.get(type)) else event_type(type).dataset_schema()
        )

    @routes.post("/export", status_code=202, summary="Export a dataset")
    async def export(who: DatasetsExport, body: ExportIn) -> ExportOut:
        """Start an export job; `GET /export/{id}` shows its progress.

        The same query on the same data gives the same bytes.
        """
        return _export(await exports.submit(body.query(), owner=owner(who), audit=audit))

    @routes.post("/export/estimate", summary="Say what an export would be")
    async def estimate(_: DatasetsExport, body: ExportIn) -> EstimateOut:
        """Count the rows, without writing anything."""
        found = await asyncio.to_thread(exports.estimate, body.query())
        return EstimateOut(rows=found.rows, bytes=found.size_bytes, parts=found.parts)

    @routes.get("/export/{export_id}", summary="Show an export")
    async def one(_: DatasetsExport, export_id: str) -> ExportOut:
        """Return the job's state and progress; after success also the manifest and files."""
        await exports.find(export_id)
        return await asyncio.to_thread(
            lambda: _export(exports.get(export_id), exports.manifest(export_id))
        )

    @routes.delete("/export/{export_id}", status_code=204, summary="Delete an export")
    async def delete(who: DatasetsExport, export_id: str) -> None:
        """Delete a finished export with its files, job and log.

        Cancel a waiting or running one first, with `DELETE /api/jobs/{id}`.
        """
        check_may_end(who, await exports.find(export_id))
        job = await exports.remove(export_id)
        await note(
            audit, who.id, "datasets.delete", export_id, owner=job.owner, state=job.state.value
        )

    @routes.get(
        "/export/{export_id}/files/{name}",
        summary="Download a file of an export",
        response_class=FileResponse,
    )
    async def file(_: DatasetsExport, export_id: str, name: str) -> FileResponse:
        """Return a file; `Range` requests can resume a download.

        `Repr-Digest` is the SHA-256 of the whole file.
        """
        await exports.find(export_id)
        path, digest = await asyncio.to_thread(exports.file, export_id, name)
        headers = {"Cache-Control": "private, immutable, max-age=86400"}
        if digest:
            headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
        return FileResponse(path, filename=name, headers=headers, media_type=_media_type(name))

    def _export(job: Job, content: Any = None) -> ExportOut:
        folder = f"{PATH}/export/{job.id}/files"
        names = [manifest.NAME, *(part["file"] for part in content["parts"])] if content else []
        return ExportOut(
            id=job.id,
            job=shown(runner, job, spec=runner.spec(job.id)),
            manifest=dict(content) if content else None,
            files=[f"{folder}/{name}" for name in names],
        )

    return routes


def _media_type(name: str) -> str:
    return "application/json" if name == manifest.NAME else "application/octet-stream"
