"""Command ``mev audit``."""

import base64
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from mev.audit.trusted import read_trusted, trusted_file
from mev.audit.verify import (
    LogCopies,
    LogVerdict,
    compare,
    compare_kept,
    removed_logs,
    verify_folder,
)
from mev.cli import api
from mev.cli.tables import print_table
from mev.core.clock import now_ns
from mev.core.errors import MevError, NotFoundError
from mev.settings import load
from mev.store.folder import DataFolder, NotRunningError
from mev.wire.pb.audit_pb2 import AuditRecord

FOLDER = "audit"
_PATH = "/api/control/audit-log"
_MAX_PAGE = 1000
UNSIGNED_INTERVALS, UNSIGNED_MARGIN_S = 3, 60.0
"""The newest records may be unsigned for this many intervals plus a margin."""
audit = typer.Typer(help="Read and verify the audit trail.", no_args_is_help=True)


@audit.callback()
def _group() -> None:
    """Read and verify the audit trail."""


@audit.command()
def verify(
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder of the trail; default: audit in the data folder."),
    ] = None,
    key_set: Annotated[
        Path | None,
        typer.Option(help="Trusted key set, from a safe place; default: the one in the folder."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            help="Checkpoint stored elsewhere: a signed note, its envelope, or that in base64. "
            "May be repeated."
        ),
    ] = None,
    copies: Annotated[
        bool | None,
        typer.Option(
            "--against-copies/--no-copies",
            help="Compare with ClickHouse and Kafka of the running system; default: if one "
            "runs and --folder is not given.",
        ),
    ] = None,
) -> None:
    """Check every record, hash and signature; name the first error.

    Exit code 1 when something is wrong, 2 when the copies could not be compared.
    """
    wanted = copies if copies is not None else folder is None
    settings = load()
    folder = folder or settings.mev_data_dir / FOLDER
    trusted = key_set or trusted_file(folder)
    if not trusted.is_file():
        raise NotFoundError(
            f"{trusted} is not there: no audit trail in {folder}, or its keys were taken away",
            code="no_audit_trail",
        )
    trust = read_trusted(trusted)
    # Read the copies first: the journal may only be longer.
    found, problem = _try_copies(required=copies is True) if wanted else (None, None)
    unsigned_s = UNSIGNED_INTERVALS * settings.audit_checkpoint_s + UNSIGNED_MARGIN_S
    verdicts = verify_folder(folder, trust, at_ns=now_ns(), unsigned_s=unsigned_s)
    if found:
        for verdict in verdicts:
            compare(verdict, found, trust)
        verdicts += removed_logs(verdicts, found, trust)
    if not verdicts:
        raise NotFoundError(f"there is no log in {folder}", code="no_audit_trail")
    for path in checkpoint or ():
        compare_kept(verdicts, _envelope(path), path.name, trust)
    _print(verdicts)
    for log_id in sorted(
        {*found.heads, *found.records} - {verdict.log_id for verdict in verdicts} if found else ()
    ):
        typer.echo(
            f"note: {log_id}: ClickHouse holds it and the folder does not: it is another "
            "control plane's, or was removed with the key that signed it"
        )
    if any(verdict.damage for verdict in verdicts):
        raise typer.Exit(1)
    if problem:
        typer.echo(
            f"mev: the copies in ClickHouse and Kafka were not compared: {problem}", err=True
        )
        raise typer.Exit(2)


@audit.command("list")
def list_records(
    actor: Annotated[str | None, typer.Option(help="Actor; a trailing * matches a prefix.")] = None,
    action: Annotated[str | None, typer.Option(help="Action, for instance control.*.")] = None,
    object: Annotated[str | None, typer.Option(help="Object of the action.")] = None,  # noqa: A002
    outcome: Annotated[str | None, typer.Option(help="ok, or the code of an error.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Not before, for instance 2026-08-01T00:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=_MAX_PAGE)] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")] = False,
) -> None:
    """List audit records, newest first."""
    filters = {
        "actor": actor,
        "action": action,
        "object": object,
        "outcome": outcome,
        "from": since,
        "to": until,
        "limit": limit,
    }
    answer = api.ask_api(
        "GET",
        f"{_PATH}?"
        f"{urlencode({name: value for name, value in filters.items() if value is not None})}",
    )
    if json:
        typer.echo(answer.text)
        return
    columns = ("actor", "action", "object", "outcome", "details_json")
    rows = [
        (_time(item["at_ns"]), *(item[name] for name in columns), item["log_id"], item["index"])
        for item in answer.json()["items"]
    ]
    print_table(("time", *columns, "log", "index"), rows)


def _try_copies(*, required: bool) -> tuple[LogCopies | None, str | None]:
    """Return the copies, or why they cannot be read.

    Returns neither if no system is running and the copies are not required.
    """
    try:
        return _read_copies(), None
    except NotRunningError as error:
        if required:
            return None, error.detail
        typer.echo(
            "note: no system runs here, so the copies in ClickHouse and Kafka were not compared"
        )
        return None, None
    except MevError as error:
        return None, error.detail


def _envelope(path: Path) -> bytes:
    """Return a checkpoint stored in a file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", code="no_audit_trail") from None
    try:
        return base64.b64decode(content.strip(), validate=True)
    except ValueError:
        return content


def _read_copies() -> LogCopies:
    from mev.audit import tables
    from mev.audit.copies import published_checkpoints
    from mev.service_clients import find_brokers

    settings = load()
    folder = DataFolder(settings.mev_data_dir)
    records, heads = defaultdict(list), defaultdict(list)
    for item in _pages("/checkpoints"):
        heads[item["log_id"]].append(base64.b64decode(item["envelope"]))
    for item in _pages(""):
        records[item["log_id"]].append(AuditRecord(**{name: item[name] for name in tables.COLUMNS}))
    published = published_checkpoints(
        find_brokers(settings, folder), timeout_s=settings.service_timeout_s
    )
    return LogCopies(records=records, heads=heads, published=published)


def _pages(path: str) -> Iterator[dict[str, Any]]:
    query: dict[str, object] = {"limit": _MAX_PAGE}
    while True:
        page = api.ask_api("GET", f"{_PATH}{path}?{urlencode(query)}").json()
        yield from page["items"]
        if not page["next_cursor"]:
            return
        query["cursor"] = page["next_cursor"]


def _print(verdicts: list[LogVerdict]) -> None:
    rows = []
    for verdict in verdicts:
        log = verdict.log
        counts = (
            (log.tree.size, log.removed, len(log.segments), len(log.heads))
            if log
            else ("", "", "", "")
        )
        rows.append((verdict.log_id, *counts, "DAMAGED" if verdict.damage else "sound"))
    print_table(("log", "records", "of them removed", "segments", "checkpoints", "verdict"), rows)
    for verdict in verdicts:
        for note in verdict.notes:
            typer.echo(f"note: {verdict.log_id}: {note}")
        if verdict.damage:
            typer.echo(f"DAMAGED: {verdict.damage.detail}")


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds")
