"""Execution of an export: parts are written one by one, each complete and recorded before the next.

An export ends at the greatest key present at its start, so that arriving events do not extend it. A
part is counted, written and counted again; it is valid only if the count is unchanged, so that the
manifest's row counts are those of the files.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from mev.core.clock import now_ns
from mev.core.files import DiskFullError, free_bytes, sync_folder, write_atomically
from mev.core.text import counted
from mev.datasets import manifest, parts
from mev.datasets.errors import (
    ExportTooLargeError,
    IncompletePartError,
    StillChangingError,
    TooManyPartsError,
)
from mev.datasets.manifest import Part
from mev.datasets.query import Key, Query, Statements
from mev.datasets.query_runner import QueryRunner
from mev.jobs.context import Context
from mev.store.clickhouse import ClickHouse

KIND = "export"
_PLAN = "plan.json"
MAX_PARTS = 10_000
"""Limited because the whole plan is rewritten after each part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportLimits:
    """Limits of one export.

    `reserve_bytes` of the disk stay free. `retry_s` is the time to wait for an unavailable
    ClickHouse. `rests_s` are the delays before retrying a part in whose range events have arrived.
    """

    memory_bytes: int = 1 << 30
    size_bytes: int = 1 << 40
    reserve_bytes: int = 0
    retry_s: float = 600.0
    rests_s: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """State of an export: its range, the parts written, and the last key."""

    upto: Key | None
    events: int
    looked_at: int = 0
    last: Key | None = None
    parts: tuple[Part, ...] = ()
    started_ns: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def text(self) -> str:
        """The parts written so far, as text."""
        return f"{counted(self.rows, 'row')} in {counted(len(self.parts), 'part')}"


def make_export(clickhouse: ClickHouse, limits: ExportLimits) -> Callable[[Context], None]:
    """Return the function that runs a job of kind `export`; its spec is a query."""

    def export(context: Context) -> None:
        with closing(QueryRunner(clickhouse, context, retry_s=limits.retry_s)) as query_runner:
            _Export(context, query_runner, limits).run()

    return export


class _Export:
    def __init__(self, context: Context, query_runner: QueryRunner, limits: ExportLimits) -> None:
        self._context = context
        self._query_runner = query_runner
        self._limits = limits
        self._query = Query.from_json(dict(context.spec))
        self._statements = Statements(self._query, query_runner.database)
        self._plan_file = context.folder / _PLAN

    def run(self) -> None:
        context = self._context
        plan = self._read_plan() or self._new_plan()
        self._tidy(plan)
        self._tell(plan)
        while plan.last != plan.upto:
            context.check()
            plan = self._next(plan)
            self._write_plan(plan)
            self._tell(plan)
        if not plan.parts:
            plan = replace(plan, parts=(self._empty_part(plan),))
            self._write_plan(plan)
        self._check_kept(plan)
        manifest.write(
            context.output, context.folder.name, self._statements, plan.parts, plan.started_ns
        )
        self._tell(plan)
        context.log.info("%s, %s", plan.text, counted(plan.size_bytes, "byte"))

    def _new_plan(self) -> Plan:
        found = self._query_runner.rows(self._statements.last_key())
        upto = list(found[0]) if found else None
        events = int(self._query_runner.rows(self._statements.size(upto))[0][0]) if upto else 0
        if (files := -(-events // self._query.part_rows)) > MAX_PARTS:
            raise TooManyPartsError(
                f"{events} rows would be {files} files; "
                f"{MAX_PARTS} are allowed: ask for a larger part_rows, or fewer rows"
            )
        plan = Plan(upto=upto, events=events, started_ns=now_ns())
        self._write_plan(plan)
        return plan

    def _next(self, plan: Plan) -> Plan:
        assert plan.upto is not None  # noqa: S101 - checked by the loop
        found = self._query_runner.rows(self._statements.boundary(plan.last, plan.upto))
        last = list(found[0]) if found else plan.upto
        part = self._part(plan, last)
        looked_at = (
            min(plan.events, plan.looked_at + self._query.part_rows) if found else plan.events
        )
        return replace(
            plan, last=last, looked_at=looked_at, parts=(*plan.parts, *([part] if part else []))
        )

    def _part(self, plan: Plan, last: Key) -> Part | None:
        """Return the part that ends at `last`, None if it has no rows."""
        count = self._statements.count(plan.last, last)
        rows = int(self._query_runner.rows(count)[0][0])
        for rest_s in self._limits.rests_s:
            raw = self._context.output / ".part"
            if rows:
                self._check_room()
                self._write_rows(raw, plan, last, rows)
            before, rows = rows, int(self._query_runner.rows(count)[0][0])
            if rows == before:
                return self._keep(raw, plan, rows) if rows else None
            raw.unlink(missing_ok=True)
            self._query_runner.wait(rest_s, "waiting until no more events arrive in the range")
        raise StillChangingError(
            "events keep arriving in the range; let it end a little earlier, "
            "or try again when they have settled"
        )

    def _empty_part(self, plan: Plan) -> Part:
        """Return a file without rows, so that an empty export is readable like any other."""
        raw = self._context.output / ".part"
        self._write_rows(raw, plan, None, 0)
        return self._keep(raw, plan, 0)

    def _check_room(self) -> None:
        """Check the disk space reserved for commands, the audit trail and tables."""
        free = free_bytes(self._context.output)
        if free < (reserve := self._limits.reserve_bytes):
            raise DiskFullError(
                f"{self._context.output} is on a disk with {free} bytes free, "
                f"and exports leave {reserve} (EXPORT_RESERVE_BYTES); "
                "free space, or set EXPORT_DIR to another disk",
                path=str(self._context.output),
            )

    def _write_rows(self, raw: Path, plan: Plan, last: Key | None, rows: int) -> None:
        settings = parts.engine_settings(self._query, memory_bytes=self._limits.memory_bytes)
        fmt = parts.ENGINE_FORMATS[self._query.format]
        self._query_runner.write_file(
            raw, self._statements.part(plan.last, last, rows), fmt=fmt, settings=settings
        )

    def _keep(self, raw: Path, plan: Plan, rows: int) -> Part:
        name = parts.name(self._query, len(plan.parts))
        size, digest = parts.finish(
            raw, self._context.output / name, self._query, rows, self._context.check
        )
        sync_folder(self._context.output)
        if plan.size_bytes + size > self._limits.size_bytes:
            raise ExportTooLargeError(
                f"the export is larger than {self._limits.size_bytes} bytes "
                "(EXPORT_BYTES_PER_PRINCIPAL); ask for fewer columns or rows"
            )
        return Part(file=name, rows=rows, bytes=size, sha256=digest)

    def _check_kept(self, plan: Plan) -> None:
        for part in plan.parts:
            path = self._context.output / part.file
            size = path.stat().st_size if path.is_file() else 0
            if size != part.bytes:
                raise IncompletePartError(
                    f"{path} has {size} bytes of {part.bytes}; "
                    "it was changed after it was written, export again"
                )

    def _tidy(self, plan: Plan) -> None:
        """Remove files of an unrecorded part left by a crash."""
        known = {part.file for part in plan.parts}
        for path in self._context.output.iterdir():
            if path.name not in known:
                path.unlink()

    def _tell(self, plan: Plan) -> None:
        figures = {"rows": plan.rows, "bytes": plan.size_bytes, "parts": len(plan.parts)}
        self._context.progress(plan.looked_at, plan.events, plan.text, **figures)

    def _read_plan(self) -> Plan | None:
        try:
            content = orjson.loads(self._plan_file.read_bytes())
        except FileNotFoundError:
            return None
        return Plan(**{**content, "parts": tuple(Part(**part) for part in content["parts"])})

    def _write_plan(self, plan: Plan) -> None:
        write_atomically(self._plan_file, orjson.dumps(asdict(plan)))
