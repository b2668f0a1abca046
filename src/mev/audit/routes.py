"""Routes of the audit log and its proofs."""

import asyncio
import base64
import csv
import io
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Header, Query, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel

from mev.audit import tables
from mev.audit.proofs import Proofs
from mev.audit.query import MAX_PAGE, AuditPage, Filters, heads_page, records_page
from mev.audit.service import Audit
from mev.audit.tlog import Tiles
from mev.auth.dependencies import AuditRead
from mev.core.clock import check_time
from mev.core.query import QueryInt
from mev.store.clickhouse import ClickHouse

PATH = "/api/control/audit-log"
TLOG = PATH + "/tlog/{log_id}"
_NO_STORE = {"Cache-Control": "no-store"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
Limit = Annotated[QueryInt, Query(ge=1, le=MAX_PAGE)]
Time = Annotated[AwareDatetime, AfterValidator(check_time)]
Since = Annotated[
    Time | None, Query(alias="from", description="Not before this time, with its offset from UTC.")
]
Until = Annotated[Time | None, Query(alias="to", description="Before this time.")]


class Inclusion(BaseModel):
    """Proof that a record is in the log: hashes in hexadecimal, record and checkpoint in base64."""

    log_id: str
    index: int
    record: str | None
    leaf_hash: str
    size: int
    root_hash: str
    proof: list[str]
    checkpoint: str


class Consistency(BaseModel):
    """Proof that a log was only appended to: hashes in hexadecimal."""

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
    tiles = Tiles(proofs)

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
        """Filter by exact values, or by a prefix with `*`, such as `control.*`.

        CSV on request: the next cursor is then in `X-Next-Cursor`.
        """
        filters = Filters(
            actor=actor,
            action=action,
            object=object,
            outcome=outcome,
            log_id=log_id,
            since=since,
            until=until,
        )
        page = await asyncio.to_thread(
            records_page, clickhouse, filters, limit=limit, cursor=cursor, timeout_s=timeout_s
        )
        return (
            _csv(page)
            if format == "csv" or (format is None and "text/csv" in accept)
            else _json(page)
        )

    @routes.get(PATH + "/checkpoints", summary="List signed checkpoints, newest first")
    async def checkpoints(
        _: AuditRead, log_id: str | None = None, limit: Limit = 100, cursor: str | None = None
    ) -> Response:
        """Return the copies in ClickHouse, each with its envelope in base64."""
        filters = Filters(log_id=log_id)
        return _json(
            await asyncio.to_thread(
                heads_page, clickhouse, filters, limit=limit, cursor=cursor, timeout_s=timeout_s
            )
        )

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
        _: AuditRead,
        log_id: str,
        old: Annotated[QueryInt, Query(alias="from", ge=0)],
        new: Annotated[QueryInt, Query(alias="to", ge=0)],
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

    @routes.get(TLOG + "/checkpoint", summary="Get the newest checkpoint as a signed note")
    async def tlog_checkpoint(_: AuditRead, log_id: str) -> Response:
        """Return a checkpoint as defined by https://c2sp.org/tlog-checkpoint."""
        note = await asyncio.to_thread(tiles.checkpoint, log_id)
        return Response(note, media_type="text/plain; charset=utf-8", headers=_NO_STORE)

    @routes.get(TLOG + "/verifier-key", summary="Get the key that verifies the signed notes")
    async def tlog_key(_: AuditRead, log_id: str) -> Response:
        """Return the key as defined by https://c2sp.org/signed-note.

        Compare it with an external copy.
        """
        key = await asyncio.to_thread(tiles.verifier_key, log_id)
        return Response(key + "\n", media_type="text/plain; charset=utf-8", headers=_NO_STORE)

    @routes.get(TLOG + "/tile/{tile:path}", summary="Get a tile of hashes or records")
    async def tlog_tile(_: AuditRead, log_id: str, tile: str) -> Response:
        """Return a tile as defined by https://c2sp.org/tlog-tiles.

        For example `0/000` or `entries/000.p/17`.
        """
        content = await asyncio.to_thread(tiles.tile, log_id, tile)
        return Response(content, media_type="application/octet-stream", headers=_NO_STORE)

    return routes


def _json(page: AuditPage) -> Response:
    return Response(page.body(), media_type="application/json")


def _csv(page: AuditPage) -> Response:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(tables.COLUMNS)
    rows.writerows(
        [_cell(row[name]) for name in tables.COLUMNS] for row in map(orjson.loads, page.items)
    )
    headers = {"Content-Disposition": 'attachment; filename="audit-log.csv"'}
    if page.next_cursor:
        headers["X-Next-Cursor"] = page.next_cursor
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: object) -> object:
    """Return `value` escaped so that a spreadsheet reads text and not a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
