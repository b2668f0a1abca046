"""``mev audit``."""

import base64
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from mev import wiring
from mev.audit import routes, tables
from mev.audit.published import published_checkpoints
from mev.audit.query import MAX_PAGE
from mev.audit.trusted import read_trusted, trusted_file
from mev.audit.verify import Copies, Verdict, compare, verify_folder
from mev.core.errors import NotFoundError
from mev.core.terminal import print_table
from mev.settings import load
from mev.store.folder import DataFolder
from mev.wire.pb.audit_pb2 import AuditRecord

FOLDER = "audit"
audit = typer.Typer(help="Read and verify the audit trail.", no_args_is_help=True)


class NoTrailError(NotFoundError):
    """There is no audit trail in the folder."""

    code = "no_audit_trail"


@audit.callback()
def _group() -> None:
    """Read and verify the audit trail."""


@audit.command()
def verify(
    folder: Annotated[Path | None, typer.Option(help="Folder of the trail; audit below the data folder when not given.")] = None,
    key_set: Annotated[Path | None, typer.Option(help="Key set to trust, from a safe place; the one in the folder when not given.")] = None,
    against_copies: Annotated[
        bool, typer.Option("--against-copies", help="Compare with ClickHouse and Kafka of the running system.")
    ] = False,
) -> None:
    """Check every record, hash and signature; name the first thing that is wrong. Exit code 1 when there is one."""
    folder = folder or load().mev_data_dir / FOLDER
    trusted = key_set or trusted_file(folder)
    if not trusted.is_file():
        raise NoTrailError(f"{trusted} is not there: no audit trail in {folder}, or its keys were taken away")
    trust = read_trusted(trusted)
    # The copies first: the journal can only have more.
    copies = _read_copies() if against_copies else None
    verdicts = verify_folder(folder, trust)
    if not verdicts:
        raise NoTrailError(f"there is no log in {folder}")
    for verdict in verdicts:
        if copies:
            compare(verdict, copies, trust)
    _print(verdicts)
    if any(verdict.damage for verdict in verdicts):
        raise typer.Exit(1)


@audit.command("list")
def list_records(
    actor: Annotated[str | None, typer.Option(help="Who; a name that ends with * matches what begins so.")] = None,
    action: Annotated[str | None, typer.Option(help="What was done, for instance control.*.")] = None,
    object: Annotated[str | None, typer.Option(help="What it was done to.")] = None,  # noqa: A002 - the option's name
    outcome: Annotated[str | None, typer.Option(help="ok, or the code of an error.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="Not before, for instance 2026-08-01T00:00:00Z.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_PAGE)] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")] = False,
) -> None:
    """List what was done, newest first."""
    filters = {"actor": actor, "action": action, "object": object, "outcome": outcome, "from": since, "to": until, "limit": limit}
    answer = wiring.ask_api("GET", f"{routes.PATH}?{urlencode({name: value for name, value in filters.items() if value is not None})}")
    if json:
        typer.echo(answer.text)
        return
    columns = ("actor", "action", "object", "outcome", "details_json")
    rows = [(_time(item["at_ns"]), *(item[name] for name in columns), item["log_id"], item["index"]) for item in answer.json()["items"]]
    print_table(("time", *columns, "log", "index"), rows)


def _read_copies() -> Copies:
    settings = load()
    folder = DataFolder(settings.mev_data_dir)
    records, heads = defaultdict(list), defaultdict(list)
    for item in _pages("/checkpoints"):
        heads[item["log_id"]].append(base64.b64decode(item["envelope"]))
    for item in _pages(""):
        records[item["log_id"]].append(AuditRecord(**{name: item[name] for name in tables.COLUMNS}))
    published = published_checkpoints(wiring.find_brokers(settings, folder), timeout_s=settings.service_timeout_s)
    return Copies(records=records, heads=heads, published=published)


def _pages(path: str) -> Iterator[dict[str, Any]]:
    query: dict[str, object] = {"limit": MAX_PAGE}
    while True:
        page = wiring.ask_api("GET", f"{routes.PATH}{path}?{urlencode(query)}").json()
        yield from page["items"]
        if not page["next_cursor"]:
            return
        query["cursor"] = page["next_cursor"]


def _print(verdicts: list[Verdict]) -> None:
    rows = []
    for verdict in verdicts:
        log = verdict.log
        counts = (log.tree.size, log.removed, len(log.segments), len(log.heads)) if log else ("", "", "", "")
        rows.append((verdict.log_id, *counts, "DAMAGED" if verdict.damage else "sound"))
    print_table(("log", "records", "of them removed", "segments", "checkpoints", "verdict"), rows)
    for verdict in verdicts:
        for note in verdict.notes:
            typer.echo(f"note: {verdict.log_id}: {note}")
        if verdict.damage:
            typer.echo(f"DAMAGED: {verdict.damage.detail}")


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds")
