"""Commands ``mev datasets`` and ``mev export``."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from mev.cli.api import ask_api, poll
from mev.cli.jobs import follow, full_id
from mev.cli.tables import Id, print_table
from mev.core.errors import InvalidInputError, MevError
from mev.core.files import disk_full, write_atomically
from mev.core.text import counted
from mev.datasets.catalog import Format
from mev.datasets.manifest import NAME
from mev.datasets.query import Labels

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
Out = Annotated[Path | None, typer.Option(file_okay=False, help="Folder to download the files to.")]
ExportId = Annotated[
    str, typer.Argument(help="The id of an export, or its first 8 digits or more.")
]
datasets = typer.Typer(
    help="List stored datasets, and download or delete exports.", no_args_is_help=True
)
_PATH = "/api/datasets"
_COLUMNS = ("type", "rows", "first slot", "last slot", "from", "to", "description")
_PART_COLUMNS = ("file", "rows", "bytes")
_PIECE_BYTES = 8 << 20


class UnwritableFolderError(InvalidInputError):
    """The folder is not writable."""

    code = "unwritable_folder"


@datasets.callback()
def _group() -> None:
    """List stored datasets, and download or delete exports."""


@datasets.command("list")
def list_datasets(json: Json = False) -> None:
    """List the datasets with their number of rows and time range."""
    answer = ask_api("GET", _PATH)
    if json:
        typer.echo(answer.text)
        return
    print_table(_COLUMNS, [_row(item) for item in answer.json()["items"]])


@datasets.command("schema")
def schema(
    type: Annotated[str, typer.Argument(help="For instance opportunity.")],  # noqa: A002
    json: Json = False,
) -> None:
    """Describe the columns of a dataset."""
    answer = ask_api("GET", f"{_PATH}/schema/{type}")
    if json:
        typer.echo(answer.text)
        return
    columns = ("name", "type", "unit", "description")
    print_table(columns, [[field[name] for name in columns] for field in answer.json()["fields"]])


@datasets.command("download")
def download(
    export_id: ExportId,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder to download the files to.")
    ] = Path(),
) -> None:
    """Download and verify the files of an export; complete files are not downloaded again."""
    _check_writable(out)
    _download(ask_api("GET", f"{_PATH}/export/{full_id(export_id)}").json(), out)


@datasets.command("delete")
def delete(export_id: ExportId) -> None:
    """Delete a finished export: its files, its job and its log."""
    export_id = full_id(export_id)
    ask_api("DELETE", f"{_PATH}/export/{export_id}")
    typer.echo(f"export {export_id} is deleted")


def export(
    type: Annotated[  # noqa: A002
        str, typer.Argument(help="Dataset to export, as shown by `mev datasets list`.")
    ],
    columns: Annotated[
        str | None, typer.Option(help="Columns, separated by commas; default: all.")
    ] = None,
    filter: Annotated[  # noqa: A002
        list[str] | None,
        typer.Option(help="A condition, for instance 'landed == true'; may be repeated."),
    ] = None,
    from_slot: Annotated[int | None, typer.Option(min=0, help="First slot.")] = None,
    to_slot: Annotated[int | None, typer.Option(min=0, help="End before this slot.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Not before, for instance 2026-08-01T00:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before.")] = None,
    sample: Annotated[float, typer.Option(help="Fraction of the rows.")] = 1.0,
    format: Annotated[Format, typer.Option(help="File format.")] = Format.PARQUET,  # noqa: A002
    compression: Annotated[
        str | None, typer.Option(help="zstd, gzip, lz4, snappy or none, as the format allows.")
    ] = None,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of one file.")] = 250_000,
    escape_formulas: Annotated[
        bool,
        typer.Option(help="CSV: put an apostrophe before text that a spreadsheet would run."),
    ] = True,
    labels: Annotated[
        Labels | None,
        typer.Option(
            help="training_examples: the agent's own bundle (agent), or the best of all agents "
            "(market)."
        ),
    ] = None,
    label_slots: Annotated[
        int | None,
        typer.Option(
            min=0, help="training_examples: slots after the opportunity's in which bundles count."
        ),
    ] = None,
    out: Out = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print an estimate of the size and exit.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")] = True,
    json: Json = False,
) -> None:
    """Export a dataset to files: Parquet, Arrow, CSV or NDJSON, with a manifest."""
    body = {
        "type": type,
        "columns": [name.strip() for name in columns.split(",")] if columns else None,
        "filter": filter or [],
        "slots": {"from": from_slot, "to": to_slot},
        "time": {"from": since, "to": until},
        "sample": sample,
        "format": format.value,
        "compression": compression,
        "part_rows": part_rows,
        "escape_formulas": escape_formulas,
        "labels": labels and labels.value,
        "label_slots": label_slots,
    }
    if estimate:
        found = ask_api("POST", f"{_PATH}/export/estimate", body)
        typer.echo(found.text if json else _estimated(found.json()))
        return
    if out:
        _check_writable(out)
    answer = ask_api("POST", f"{_PATH}/export", body)
    export_id = answer.json()["id"]
    if wait or out:
        follow(export_id)
        answer = poll(f"{_PATH}/export/{export_id}")
    if json:
        typer.echo(answer.text)
    else:
        _print(answer.json())
    if out:
        _download(answer.json(), out)


def _row(item: dict[str, Any]) -> tuple[object, ...]:
    slots, time = (
        item["slots"] or {"first": "", "last": ""},
        item["time"] or {"first": "", "last": ""},
    )
    rows = "" if item["rows"] is None else item["rows"]
    since, until = (time[end][:19].replace("T", " ") for end in ("first", "last"))
    return item["type"], rows, slots["first"], slots["last"], since, until, item["description"]


def _estimated(found: dict[str, Any]) -> str:
    return (
        f"{counted(found['rows'], 'row')} in {counted(found['parts'], 'part')}, about "
        f"{counted(found['bytes'], 'byte')}"
    )


def _print(shown: dict[str, Any]) -> None:
    if (manifest := shown["manifest"]) is None:
        typer.echo(
            f"export {shown['id']}: {shown['job']['state']}; `mev jobs show {shown['id']}` "
            "says how far it is"
        )
        return
    parts = manifest["parts"]
    sums = (
        counted(manifest["rows"], "row"),
        counted(manifest["bytes"], "byte"),
        counted(len(parts), "part"),
    )
    typer.echo(f"export {shown['id']}: {', '.join(sums)}")
    print_table(
        (*_PART_COLUMNS, "sha256"),
        [(*(part[name] for name in _PART_COLUMNS), Id(part["sha256"])) for part in parts],
    )


def _download(shown: dict[str, Any], folder: Path) -> None:
    manifest = shown["manifest"]
    if manifest is None:
        raise MevError(
            f"export {shown['id']} is {shown['job']['state']}; it has files once it has succeeded",
            code="damaged_download",
        )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with _writing(folder), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=manifest["bytes"])
        for part in manifest["parts"]:
            bar.update(task, description=part["file"])
            _fetch(shown["id"], part, folder / Path(part["file"]).name)
            bar.update(task, advance=part["bytes"])
        write_atomically(
            folder / NAME, poll(f"{_PATH}/export/{shown['id']}/files/{NAME}").content, mode=0o666
        )
    typer.echo(
        f"{counted(len(manifest['parts']), 'file')}, verified, and {NAME} in {folder}", err=True
    )


def _check_writable(folder: Path) -> None:
    """Check that the folder is writable before the export starts."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if (full := disk_full(error, folder)) is not None:
            raise full from None
        raise UnwritableFolderError(
            f"{error.strerror or error}: {error.filename or folder}; --out names another folder"
        ) from None


def _fetch(export_id: str, part: dict[str, Any], target: Path) -> None:
    """Download a file in pieces; resume where an earlier attempt ended."""
    if target.exists() and _digest(target) == part["sha256"]:
        return
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("ab") as file:
        while (have := file.tell()) < part["bytes"]:
            end = min(have + _PIECE_BYTES, part["bytes"]) - 1
            piece = poll(
                f"{_PATH}/export/{export_id}/files/{part['file']}",
                headers={"Range": f"bytes={have}-{end}"},
            )
            file.write(piece.content)
        file.flush()
        os.fsync(file.fileno())
    if _digest(partial) != part["sha256"]:
        partial.unlink()
        raise MevError(
            f"{part['file']} does not have the digest in the manifest; it was removed, run the "
            "command again",
            code="damaged_download",
        )
    partial.replace(target)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
