"""The work of an export: one part after the other, each whole and noted down before the next begins.

What is exported ends at the greatest key there is at the start, so that an export ends however much arrives meanwhile. A part is counted,
written and counted again: only when nothing came between is it kept, so the rows in the manifest are those in the file.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from mev.core.clock import now_ns
from mev.core.files import sync_folder, write_atomically
from mev.core.text import counted
from mev.datasets import manifest, parts
from mev.datasets.asker import Asker
from mev.datasets.errors import ExportTooLargeError, StillChangingError, TooManyPartsError
from mev.datasets.manifest import Part
from mev.datasets.query import Key, Query, Statements
from mev.jobs.context import Context
from mev.store.clickhouse import ClickHouse

KIND = "export"
_PLAN = "plan.json"
MAX_PARTS = 10_000
"""Each part writes the whole plan anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one export.

    `retry_s` is how long it waits for a ClickHouse that went away, `rests_s` how long before each further try at a part in whose range
    events came meanwhile.
    """

    memory_bytes: int = 1 << 30
    size_bytes: int = 1 << 40
    retry_s: float = 600.0
    rests_s: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How far an export is: what it covers, where its last part ended, the parts it has."""

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
        """What there is of it."""
        return f"{counted(self.rows, 'row')} in {counted(len(self.parts), 'part')}"


def make_export(clickhouse: ClickHouse, limits: Limits) -> Callable[[Context], None]:
    """Return the work of a job of kind `export`, whose spec is a query."""

    def export(context: Context) -> None:
        with closing(Asker(clickhouse, context, retry_s=limits.retry_s)) as asker:
            _Export(context, asker, limits).run()

    return export


class _Export:
    def __init__(self, context: Context, asker: Asker, limits: Limits) -> None:
        self._context = context
        self._asker = asker
        self._limits = limits
        self._query = Query.from_json(dict(context.spec))
        self._statements = Statements(self._query, asker.database)
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
        manifest.write(context.output, context.folder.name, self._statements, plan.parts, plan.started_ns)
        self._tell(plan)
        context.log.info("%s, %s", plan.text, counted(plan.size_bytes, "byte"))

    def _new_plan(self) -> Plan:
        found = self._asker.rows(self._statements.last_key())
        upto = list(found[0]) if found else None
        events = int(self._asker.rows(self._statements.size(upto))[0][0]) if upto else 0
        if (files := -(-events // self._query.part_rows)) > MAX_PARTS:
            raise TooManyPartsError(
                f"{events} rows would be {files} files; {MAX_PARTS} are allowed: ask for a larger part_rows, or fewer rows"
            )
        plan = Plan(upto=upto, events=events, started_ns=now_ns())
        self._write_plan(plan)
        return plan

    def _next(self, plan: Plan) -> Plan:
        assert plan.upto is not None  # noqa: S101 - the loop has ended otherwise
        found = self._asker.rows(self._statements.boundary(plan.last, plan.upto))
        last = list(found[0]) if found else plan.upto
        part = self._part(plan, last)
        looked_at = min(plan.events, plan.looked_at + self._query.part_rows) if found else plan.events
        return replace(plan, last=last, looked_at=looked_at, parts=(*plan.parts, *([part] if part else [])))

    def _part(self, plan: Plan, last: Key) -> Part | None:
        """Return the part that ends at `last`, None when it has no rows."""
        count = self._statements.count(plan.last, last)
        rows = int(self._asker.rows(count)[0][0])
        for rest_s in self._limits.rests_s:
            raw = self._context.output / ".part"
            if rows:
                self._write_rows(raw, plan, last, rows)
            before, rows = rows, int(self._asker.rows(count)[0][0])
            if rows == before:
                return self._keep(raw, plan, rows) if rows else None
            raw.unlink(missing_ok=True)
            self._asker.wait(rest_s, "waiting until no event comes in the range")
        raise StillChangingError("events keep arriving in the range; let it end a little earlier, or try again when they have settled")

    def _write_rows(self, raw: Path, plan: Plan, last: Key, rows: int) -> None:
        settings = parts.engine_settings(self._query, memory_bytes=self._limits.memory_bytes)
        fmt = parts.ENGINE_FORMATS[self._query.format]
        self._asker.write_file(raw, self._statements.part(plan.last, last, rows), fmt=fmt, settings=settings)

    def _keep(self, raw: Path, plan: Plan, rows: int) -> Part:
        name = parts.name(self._query, len(plan.parts))
        size, digest = parts.finish(raw, self._context.output / name, self._query, self._context.check)
        sync_folder(self._context.output)
        if plan.size_bytes + size > self._limits.size_bytes:
            raise ExportTooLargeError(
                f"the export is larger than {self._limits.size_bytes} bytes (EXPORT_BYTES_PER_PRINCIPAL); ask for fewer columns or rows"
            )
        return Part(file=name, rows=rows, bytes=size, sha256=digest)

    def _tidy(self, plan: Plan) -> None:
        """Remove what a crash left of a part that was never noted down."""
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
