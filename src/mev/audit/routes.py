"""``GET /api/control/audit-log`` and what proves it."""

import asyncio
import base64
import csv
import io
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Header, Query, Response
from pydantic import AwareDatetime, BaseModel

from mev.audit import tables
from mev.audit.proofs import Proofs
from mev.audit.query import MAX_PAGE, Filters, Page, heads_page, records_page
from mev.audit.service import Audit
from mev.auth.dependencies import AuditRead
from mev.store.clickhouse import ClickHouse

PATH = "/api/control/audit-log"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Since = Annotated[AwareDatetime | None, Query(alias="from", description="Not before this time, with its offset from UTC.")]
Until = Annotated[AwareDatetime | None, Query(alias="to", description="Before this time.")]


class Inclusion(BaseModel):
    """Proof that a record is in the log: hashes in hexadecimal, the record and the signed checkpoint in base64."""

    log_id: str
    index: int
    record: str | None
    leaf_hash: str
    size: int
    root_hash: str
    proof: list[str]
    checkpoint: str


class Consistency(BaseModel):
    """Proof that a log was only added to: hashes in hexadecimal."""

    log_id: str
    from_size: int
    to_size: int
    from_root: str
    to_root: str
    proof: list[str]


def router(audit: Audit, clickhouse: ClickHouse, *, timeout_s: float) -> APIRouter:
    """Return the routes of the audit trail."""
    routes = APIRouter(tags=["control"])
    proofs = Proofs(audit)

    @routes.get(PATH, summary="Search the audit trail, newest first")
    async def audit_log(
        _: AuditRead,
        actor: str | None = None,
        action: str | None = None,
        object: str | None = None,  # noqa: A002 - the parameter's public name
        outcome: str | None = None,
        log_id: str | None = None,
        since: Since = None,
        until: Until = None,
        limit: Limit = 100,
        cursor: str | None = None,
        format: Literal["json", "csv"] | None = None,  # noqa: A002 - the parameter's public name
        accept: Annotated[str, Header()] = "",
    ) -> Response:
        """Filter by what is exactly so; `control.*` finds what begins so. CSV on request: the next cursor is in `X-Next-Cursor`."""
        filters = Filters(actor=actor, action=action, object=object, outcome=outcome, log_id=log_id, since=since, until=until)
        page = await asyncio.to_thread(records_page, clickhouse, filters, limit=limit, cursor=cursor, timeout_s=timeout_s)
        return _csv(page) if format == "csv" or (format is None and "text/csv" in accept) else _json(page)

    @routes.get(PATH + "/checkpoints", summary="List signed checkpoints, newest first")
    async def checkpoints(_: AuditRead, log_id: str | None = None, limit: Limit = 100, cursor: str | None = None) -> Response:
        """Return the copies in ClickHouse: each with its envelope in base64."""
        filters = Filters(log_id=log_id)
        return _json(await asyncio.to_thread(heads_page, clickhouse, filters, limit=limit, cursor=cursor, timeout_s=timeout_s))

    @routes.get(PATH + "/{log_id}/{index}/proof", summary="Prove that a record is in the log")
    async def inclusion(_: AuditRead, log_id: str, index: int) -> Inclusion:
        """Return the Merkle path (RFC 6962) from the record to the newest signed checkpoint."""
        proof, head = await asyncio.to_thread(proofs.inclusion, log_id, index)
        return Inclusion(
            log_id=log_id,
            index=index,
            record=None if proof.record is None else base64.b64encode(proof.record).decode(),
            leaf_hash=proof.leaf_hash.hex(),
            size=proof.size,
            root_hash=head.checkpoint.root_hash.hex(),
            proof=[step.hex() for step in proof.path],
            checkpoint=base64.b64encode(head.envelope).decode(),
        )

    @routes.get(PATH + "/{log_id}/consistency", summary="Prove that a log was only added to")
    async def consistency(
        _: AuditRead, log_id: str, old: Annotated[int, Query(alias="from", ge=0)], new: Annotated[int, Query(alias="to", ge=0)]
    ) -> Consistency:
        """Return the proof (RFC 6962) that the log of `to` records begins with that of `from`."""
        proof = await asyncio.to_thread(proofs.consistency, log_id, old, new)
        return Consistency(
            log_id=log_id,
            from_size=old,
            to_size=new,
            from_root=proof.old_root.hex(),
            to_root=proof.new_root.hex(),
            proof=[step.hex() for step in proof.path],
        )

    return routes


def _json(page: Page) -> Response:
    return Response(page.body(), media_type="application/json")


def _csv(page: Page) -> Response:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(tables.COLUMNS)
    rows.writerows([_cell(row[name]) for name in tables.COLUMNS] for row in map(orjson.loads, page.items))
    headers = {"Content-Disposition": 'attachment; filename="audit-log.csv"'}
    if page.next_cursor:
        headers["X-Next-Cursor"] = page.next_cursor
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: object) -> object:
    """Return `value` so that a spreadsheet takes it for text, not for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
