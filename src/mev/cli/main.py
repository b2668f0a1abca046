"""The ``mev`` command.

The module of a command is imported when the command runs; `mev --help` uses only the table.
"""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mev import __version__
from mev.core.errors import InvalidInputError, MevError
from mev.core.text import shown

if TYPE_CHECKING:
    from pydantic import SecretStr

    from mev.agent import Site
    from mev.cli.agent import Places
    from mev.cli.tail import EventSource

_SYSTEM, _CONTROL, _EVENTS = "System", "Control", "Events"
_LEARNING, _ACCOUNTS = "Data and models", "Accounts"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEntry:
    """A command or group of commands: its factory and its line in `mev --help`."""

    made_by: str
    """`module:name` of a Typer application or of a command function."""
    help: str
    panel: str


ENTRIES: dict[str, CommandEntry] = {
    "up": CommandEntry(
        made_by="mev.cli.up:up",
        help="Run the system in this process until interrupted, with embedded services by default.",
        panel=_SYSTEM,
    ),
    "reload": CommandEntry(
        made_by="mev.cli.up:reload",
        help="Replace the processes of the running system one at a time; no request fails.",
        panel=_SYSTEM,
    ),
    "status": CommandEntry(
        made_by="mev.cli.status:status",
        help="Show levels, agents, policies, models, lag and paper profit of the running system.",
        panel=_SYSTEM,
    ),
    "doctor": CommandEntry(
        made_by="mev.cli.doctor:doctor",
        help="Check machine, limits, clocks, disk and services; exit code 1 if there is a problem.",
        panel=_SYSTEM,
    ),
    "backup": CommandEntry(
        made_by="mev.cli.backup:backup",
        help="Save the data of the stopped system to a new folder, with its keys encrypted.",
        panel=_SYSTEM,
    ),
    "restore": CommandEntry(
        made_by="mev.cli.backup:restore",
        help="Restore a backup to the data folder, which must not exist or be empty.",
        panel=_SYSTEM,
    ),
    "config": CommandEntry(
        made_by="mev.cli.main:config", help="Show and check the settings.", panel=_SYSTEM
    ),
    "sink": CommandEntry(made_by="mev.cli.sink:sink", help="Check stored records.", panel=_SYSTEM),
    "topics": CommandEntry(
        made_by="mev.cli.topics:topics",
        help="Show and change topics, and show the lag of the sink.",
        panel=_SYSTEM,
    ),
    "kill": CommandEntry(
        made_by="mev.cli.control:kill",
        help="Stop all agents, a module or one agent at once; `mev resume` lets them trade again.",
        panel=_CONTROL,
    ),
    "resume": CommandEntry(
        made_by="mev.cli.control:resume",
        help="Let agents trade again: raise the level of all agents, a module or one agent.",
        panel=_CONTROL,
    ),
    "policy": CommandEntry(
        made_by="mev.cli.policies:policy",
        help="List, show, set and roll back policies: the limits of agents.",
        panel=_CONTROL,
    ),
    "command": CommandEntry(
        made_by="mev.cli.control:command",
        help="Send commands to agents and show their answers.",
        panel=_CONTROL,
    ),
    "approvals": CommandEntry(
        made_by="mev.cli.control:approvals",
        help="List, approve and reject proposals.",
        panel=_CONTROL,
    ),
    "agents": CommandEntry(
        made_by="mev.cli.control:agents", help="List and revoke agents.", panel=_CONTROL
    ),
    "agent": CommandEntry(
        made_by="mev.cli.main:make_agent",
        help="Run a bot under this control plane.",
        panel=_CONTROL,
    ),
    "rotate-key": CommandEntry(
        made_by="mev.cli.main:make_rotate_key",
        help="Create a signing key, signed by this machine's root key, and activate it.",
        panel=_CONTROL,
    ),
    "audit": CommandEntry(
        made_by="mev.cli.audit:audit", help="Read and verify the audit trail.", panel=_CONTROL
    ),
    "tail": CommandEntry(
        made_by="mev.cli.main:make_tail",
        help="Print events of the running system as they arrive, until interrupted.",
        panel=_EVENTS,
    ),
    "capture": CommandEntry(
        made_by="mev.cli.main:make_capture",
        help="Capture arbitrages, sandwiches and liquidations from Solana blocks and transactions.",
        panel=_EVENTS,
    ),
    "simulate": CommandEntry(
        made_by="mev.cli.simulate:simulate",
        help="Publish simulated opportunities, bundles and ticks to the running system.",
        panel=_EVENTS,
    ),
    "datasets": CommandEntry(
        made_by="mev.cli.datasets:datasets",
        help="List stored datasets, and download or delete exports.",
        panel=_LEARNING,
    ),
    "export": CommandEntry(
        made_by="mev.cli.datasets:export",
        help="Export a dataset to files: Parquet, Arrow, CSV or NDJSON, with a manifest.",
        panel=_LEARNING,
    ),
    "jobs": CommandEntry(
        made_by="mev.cli.jobs:jobs",
        help="List, show, follow and cancel jobs: exports and training.",
        panel=_LEARNING,
    ),
    "train": CommandEntry(
        made_by="mev.cli.training:train",
        help="Train a model, check its parity with XGBoost, sign and register it.",
        panel=_LEARNING,
    ),
    "models": CommandEntry(
        made_by="mev.cli.models:models",
        help="List, show, compare, alias, archive and sign registered models.",
        panel=_LEARNING,
    ),
    "deploy": CommandEntry(
        made_by="mev.cli.rollout:deploy",
        help="Deploy a model, move it to another stage, or roll it back.",
        panel=_LEARNING,
    ),
    "deployments": CommandEntry(
        made_by="mev.cli.rollout:deployments",
        help="List deployments, newest first, or show one: steps, answers, metrics and rules.",
        panel=_LEARNING,
    ),
    "login": CommandEntry(
        made_by="mev.cli.accounts:login",
        help="Log in; the other commands then act as this user until `mev logout`.",
        panel=_ACCOUNTS,
    ),
    "logout": CommandEntry(
        made_by="mev.cli.accounts:logout", help="Log out on this machine.", panel=_ACCOUNTS
    ),
    "user": CommandEntry(made_by="mev.cli.accounts:users", help="Manage users.", panel=_ACCOUNTS),
    "key": CommandEntry(made_by="mev.cli.accounts:keys", help="Manage API keys.", panel=_ACCOUNTS),
}


class LazyGroup(TyperGroup):
    """Command group that imports a command when it is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command named by `args`, imported on demand."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, make(name) if name in ENTRIES else listed, rest


def make(name: str) -> Any:
    """Return the command of the entry `name`; imports its module."""
    module, _, attribute = ENTRIES[name].made_by.partition(":")
    gc.disable()  # modules make no garbage, and looking for it takes an eighth of the start
    try:
        made = getattr(import_module(module), attribute)
    finally:
        gc.enable()
    if module == __name__ and not isinstance(made, typer.Typer):
        made = made()
    if not isinstance(made, typer.Typer):
        (single := typer.Typer(add_completion=False)).command(name)(made)
        made = single
    return typer.main.get_command(made)


app = typer.Typer(
    cls=LazyGroup,
    help="Control plane for fleets of Solana MEV bots.",
    no_args_is_help=True,
    add_completion=False,
)
config = typer.Typer(help="Show and check the settings.", no_args_is_help=True)


def _listed() -> None:
    """Placeholder of a command in `mev --help`."""


for _name, _entry in ENTRIES.items():
    app.command(_name, help=_entry.help, rich_help_panel=_entry.panel)(_listed)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mev {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Control plane for fleets of Solana MEV bots."""


def main() -> None:
    """Run the command line; errors print one line.

    Exit code 2 for invalid input, 1 for other errors.
    """
    try:
        app()
    except MevError as error:
        sys.stderr.write(f"mev: {shown(error.detail)}\n")
        sys.exit(2 if isinstance(error, InvalidInputError) else 1)


def make_capture() -> Callable[..., None]:
    """Return the ``capture`` command."""
    from mev.cli.capture import make_command
    from mev.service_clients import connect
    from mev.settings import load

    return make_command(connect, _data_dir, lambda: _revealed(load().rpc_url))


def make_agent() -> typer.Typer:
    """Return the ``agent`` commands."""
    from mev.cli.agent import make_command

    return make_command(_site, _places)


def make_tail() -> Callable[..., None]:
    """Return the ``tail`` command."""
    from mev.cli.tail import make_tail as make_command

    return make_command(_source)


def make_rotate_key() -> Callable[[], None]:
    """Return the ``rotate-key`` command."""
    from mev.cli.control import make_rotate

    return make_rotate(_data_dir)


def _data_dir() -> Path:
    from mev.settings import load

    return load().mev_data_dir


def _revealed(secret: "SecretStr | None") -> str | None:
    return secret.get_secret_value() if secret else None


def _site(api: str | None) -> "Site":
    """Return the control plane for an agent: the API at `api`, or the local system."""
    from mev.agent import Site
    from mev.bus.embedded import AGENT_USER
    from mev.service_clients import find_brokers
    from mev.settings import load
    from mev.store.folder import DataFolder, master_key

    settings = load()
    folder = DataFolder(settings.mev_data_dir)
    brokers = find_brokers(settings, folder, user=AGENT_USER)
    key = _revealed(settings.mev_agent_key) or master_key(settings, folder)
    return Site(api=api or folder.read_runtime().api, api_key=key, brokers=brokers)


def _places() -> "Places":
    from mev.cli.agent import Places
    from mev.settings import load

    settings = load()
    models = settings.model_dir or settings.mev_data_dir / "models"
    return Places(
        agents=settings.mev_data_dir / "agents",
        models=models,
        log_level=settings.log_level,
        log_repeats_per_minute=settings.log_repeats_per_minute,
    )


def _source() -> "EventSource":
    """Return the stream of the local system.

    The credential is the login, otherwise this machine's master key.
    """
    from mev.cli.api import ask_api
    from mev.cli.session_file import SessionFile
    from mev.cli.tail import EventSource
    from mev.client.errors import UnauthorizedError
    from mev.settings import load
    from mev.store.folder import DataFolder, master_key

    settings = load()
    folder = DataFolder(settings.mev_data_dir)
    session = SessionFile(folder.path)
    logged_in = session.read() is not None

    def credential() -> str:
        if not logged_in:
            return master_key(settings, folder)
        if session.read() is not None:
            ask_api("GET", "/api/auth/me")  # renews a login that is about to expire
        if (login := session.read()) is None:
            raise UnauthorizedError("the login has ended; log in again with `mev login`")
        return login.access_token

    return EventSource(url=folder.read_runtime().api, credential=credential)


@config.command("check")
def config_check() -> None:
    """Check the settings; exit code 2 and one line for each invalid setting."""
    from mev.settings import load

    settings = load()
    typer.echo(f"settings are valid; embedded: {', '.join(settings.embedded) or 'nothing'}")
    confinement = settings.confinement()
    typer.echo(f"trainings are confined by: {confinement}")
    for why in confinement.missing:
        typer.echo(f"  {why}")


@config.command("show")
def config_show() -> None:
    """Print every setting: value (secrets masked), origin and meaning."""
    from mev import settings
    from mev.cli.tables import print_table
    from mev.core import native

    print_table(("variable", "value", "origin", "meaning"), settings.shown(settings.load()))
    typer.echo(f"native module: {native.describe()}")


@config.command("kafka")
def config_kafka(
    *,
    agent: Annotated[
        bool,
        typer.Option(
            "--agent", help="Print the agents' credentials, which cannot write command topics."
        ),
    ] = False,
) -> None:
    """Print the variables that connect another Kafka client to the running system's brokers.

    They are quoted for a shell: `set -a; eval "$(mev config kafka)"; set +a`.
    """
    import json
    import shlex

    from mev.bus.embedded import AGENT_USER, CONTROL_PLANE_USER
    from mev.service_clients import find_brokers
    from mev.settings import load
    from mev.store.folder import DataFolder

    settings = load()
    brokers = find_brokers(
        settings,
        DataFolder(settings.mev_data_dir),
        user=AGENT_USER if agent else CONTROL_PLANE_USER,
    )
    typer.echo(f"KAFKA_BROKERS={brokers.servers}")
    typer.echo(f"KAFKA_OPTIONS={shlex.quote(json.dumps(brokers.options))}")


@config.command("key")
def config_key() -> None:
    """Print this machine's master API key."""
    from mev.settings import load
    from mev.store.folder import DataFolder, NotRunningError, master_key

    settings = load()
    folder = DataFolder(settings.mev_data_dir)
    typer.echo(master_key(settings, folder))
    try:
        folder.read_runtime()
    except NotRunningError:
        typer.echo(
            f"mev: no system runs on {folder.path}; the key is of the next one there. "
            "Set MEV_DATA_DIR to the folder of the system that you mean.",
            err=True,
        )
