"""The ``mev`` command."""

import os
import sys
import threading
from typing import Annotated

import prometheus_client
import typer
import uvloop
from pydantic import SecretStr

from mev import settings as settings_module
from mev import wiring
from mev.agent import Site
from mev.agent.commands import Places
from mev.agent.commands import make_command as make_agent
from mev.audit.commands import audit
from mev.auth.commands import keys, login, logout, users
from mev.auth.first import FirstPassword
from mev.auth.service import FIRST_ADMIN
from mev.capture.commands import make_command as make_capture
from mev.client.commands import Source, make_tail
from mev.client.errors import UnauthorizedError
from mev.control import commands as control_commands
from mev.core import log
from mev.core.errors import InvalidInputError, MevError
from mev.core.terminal import print_table
from mev.core.text import shown
from mev.datasets.commands import datasets, export
from mev.deploy import commands as deploy_commands
from mev.jobs.commands import jobs
from mev.models.commands import models
from mev.settings import Settings
from mev.simulate.commands import simulate
from mev.sink.commands import sink
from mev.store.folder import DataFolder
from mev.store.session import SessionFile
from mev.system import System, running
from mev.training.commands import train

app = typer.Typer(help="Control plane for fleets of Solana MEV bots.", no_args_is_help=True, add_completion=False)
config = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(config, name="config")
app.add_typer(sink, name="sink")
app.add_typer(users, name="user")
app.add_typer(keys, name="key")

app.command()(make_capture(wiring.connect, lambda: settings_module.load().mev_data_dir, lambda: _revealed(settings_module.load().rpc_url)))
app.command()(simulate)
app.command()(train)
app.command()(login)
app.command()(logout)
app.command()(control_commands.kill)
app.add_typer(control_commands.command, name="command")
app.add_typer(control_commands.agents, name="agents")
app.add_typer(control_commands.approvals, name="approvals")
app.command("rotate-key")(control_commands.make_rotate(lambda: settings_module.load().mev_data_dir))
app.add_typer(audit, name="audit")
app.add_typer(datasets, name="datasets")
app.command()(export)
app.add_typer(jobs, name="jobs")
app.add_typer(models, name="models")
app.command()(deploy_commands.deploy)
app.command()(deploy_commands.deployments)
_EXIT_GRACE_S = 10.0


def main() -> None:
    """Run the command line; an error is one line and an exit code: 2 for what the user can mend, 1 otherwise."""
    try:
        app()
    except MevError as error:
        sys.stderr.write(f"mev: {shown(error.detail)}\n")
        sys.exit(2 if isinstance(error, InvalidInputError) else 1)


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _site(api: str | None) -> Site:
    """Return where an agent finds its control plane: the API that was named, or the system that runs on this machine now."""
    settings = settings_module.load()
    folder = DataFolder(settings.mev_data_dir)
    brokers = wiring.find_brokers(settings, folder)
    key = _revealed(settings.mev_agent_key) or wiring.master_key(settings, folder)
    return Site(api=api or folder.read_runtime().api, api_key=key, brokers=brokers)


def _places() -> Places:
    settings = settings_module.load()
    models = settings.model_dir or settings.mev_data_dir / "models"
    return Places(agents=settings.mev_data_dir / "agents", models=models, log_level=settings.log_level)


def _source() -> Source:
    """Return the stream of the system that runs on this machine, for whoever is logged in, else with this machine's key."""
    settings = settings_module.load()
    folder = DataFolder(settings.mev_data_dir)
    session = SessionFile(folder.path)
    logged_in = session.read() is not None

    def credential() -> str:
        if not logged_in:
            return wiring.master_key(settings, folder)
        if session.read() is not None:
            wiring.ask_api("GET", "/api/auth/me")  # renews the login when it is about to end
        if (login := session.read()) is None:
            raise UnauthorizedError("the login has ended; log in again with `mev login`")
        return login.access_token

    return Source(url=folder.read_runtime().api, credential=credential)


app.add_typer(make_agent(_site, _places), name="agent")
app.command()(make_tail(_source))


@app.command()
def up(demo: Annotated[bool, typer.Option("--demo", help="Publish simulated events, marked as such.")] = False) -> None:
    """Run everything in this process until interrupted; services without a variable of their own run embedded."""
    settings = settings_module.load()
    log.configure(settings.log_level)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    uvloop.run(_up(settings, demo=demo))


async def _up(settings: Settings, *, demo: bool) -> None:
    async with running(settings, demo=demo) as system:
        _report(settings, system, demo=demo)
        await system.serve()
        _exit_after(settings.shutdown_timeout_s + _EXIT_GRACE_S)


def _exit_after(seconds: float) -> None:
    """End the process when an orderly stop takes longer; what was acknowledged is safe, the next start cleans up."""

    def end() -> None:
        sys.stderr.write(f"mev: not stopped within {seconds:g} s; ending now\n")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _report(settings: Settings, system: System, *, demo: bool) -> None:
    seen = sys.stderr.isatty()  # a log is read by others, and kept
    header = f"'X-API-Key: {system.master_key}'" if seen else '"X-API-Key: $(mev config key)"'
    lines = [
        ("API", f"{system.api_url}  (documentation: /docs)"),
        ("Stream", f"{system.api_url.replace('http', 'ws', 1)}/api/realtime/ws"),
        *([("", f"{system.webtransport}  (WebTransport)")] if system.webtransport else []),
        ("API key", system.master_key if seen else "`mev config key` shows it"),
        ("Data", str(settings.mev_data_dir)),
        *(
            (name.capitalize(), f"{address}{'  (embedded)' if name in settings.embedded else ''}")
            for name, address in system.services.items()
        ),
        ("Try", f"curl -H {header} '{system.api_url}/api/events/bundle?limit=5'"),
    ]
    if system.first_password:
        lines.append(("Login", f"{FIRST_ADMIN}, {_first_password(settings, system.first_password, seen=seen)}"))
    if demo:
        lines.append(("Demo", "simulated opportunities, bundles and ticks are published; every one is marked simulated"))
    for name, value in lines:
        typer.echo(f"{typer.style(f'{name:<10}', bold=True)}  {value}", err=True)


def _first_password(settings: Settings, password: str, *, seen: bool) -> str:
    if seen:
        return f"password {password}  (shown this once; change it with `mev user password`)"
    file = FirstPassword(settings.mev_data_dir)
    file.keep(password)
    return f"password in {file.path}  (removed at the first login, or when it is changed)"


@config.command("check")
def config_check() -> None:
    """Say whether the settings can be used; exit code 2 and a line for each that cannot."""
    settings = settings_module.load()
    embedded = ", ".join(settings.embedded) or "nothing"
    typer.echo(f"settings are valid; embedded: {embedded}")


@config.command("show")
def config_show() -> None:
    """Print every setting: value (secrets masked), whether it is set, meaning."""
    print_table(("variable", "value", "origin", "meaning"), settings_module.shown(settings_module.load()))


@config.command("key")
def config_key() -> None:
    """Print this machine's master API key."""
    settings = settings_module.load()
    typer.echo(wiring.master_key(settings, DataFolder(settings.mev_data_dir)))
