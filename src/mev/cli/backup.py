"""Commands ``mev backup`` and ``mev restore``."""

from pathlib import Path
from typing import Annotated

import typer

from mev.backup.make import make_backup
from mev.backup.manifest import BackupManifest
from mev.backup.restore import restore_backup
from mev.core.errors import InvalidInputError
from mev.settings import load

_LEAST_LENGTH = 12
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File whose first line is the passphrase of the keys; default: ask for it."),
]


def backup(
    folder: Annotated[Path, typer.Argument(help="New folder for the backup.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Save the data of the stopped system to a new folder, with its keys encrypted.

    Services that are not embedded are saved with their own tools.
    """
    passphrase = _passphrase(passphrase_file, confirm=True)
    if len(passphrase) < _LEAST_LENGTH:
        raise InvalidInputError(
            f"the passphrase has fewer than {_LEAST_LENGTH} characters", code="passphrase_too_short"
        )
    _print(make_backup(load(), folder, passphrase), "saved to", folder)


def restore(
    folder: Annotated[Path, typer.Argument(help="Folder of the backup.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Restore a backup to the data folder, which must not exist or be empty.

    Every file is compared with the backup's manifest, and the audit trail is verified, before
    anything is at the data folder.
    """
    settings = load()
    manifest, verdicts = restore_backup(
        settings, folder, _passphrase(passphrase_file, confirm=False)
    )
    _print(manifest, "restored to", settings.mev_data_dir)
    for verdict in verdicts:
        typer.echo(f"audit trail {verdict.log_id}: sound")


def _print(manifest: BackupManifest, what: str, folder: Path) -> None:
    size = sum(entry.size for entry in manifest.files.values())
    typer.echo(
        f"{len(manifest.files)} files ({size / 1e6:.1f} MB) and {len(manifest.keys)} encrypted keys"
        f" of {manifest.created_at} {what} {folder}"
    )
    services = {"kafka", "clickhouse", "redis"} - set(manifest.embedded)
    if services:
        typer.echo(f"not included, as not embedded: {', '.join(sorted(services))}")


def _passphrase(file: Path | None, *, confirm: bool) -> str:
    if file is None:
        return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm))
    try:
        return file.read_text().partition("\n")[0].strip()
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from None
