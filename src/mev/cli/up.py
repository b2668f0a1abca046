"""Commands ``mev up``: run the whole system, and ``mev reload``: replace its processes."""

import asyncio
import json
import sys
from typing import Annotated

import typer
import uvloop

from mev import settings as settings_module
from mev.auth.passwords import FirstPassword
from mev.auth.service import FIRST_ADMIN
from mev.core import kernel, native
from mev.core.errors import ConflictError
from mev.server.internal import ProcessUnavailableError, reload_workers
from mev.server.process import configure_process, end_after_shutdown
from mev.server.system import System, running
from mev.server.workers import SupervisedSystem, running_workers
from mev.settings import Settings
from mev.store.folder import DataFolder


def up(
    demo: Annotated[
        bool, typer.Option("--demo", help="Publish simulated events, marked as such.")
    ] = False,
) -> None:
    """Run the system in this process until interrupted, with embedded services by default.

    A service runs embedded unless an environment variable names an external one.
    """
    kernel.forbid_tracing()
    settings = settings_module.load()
    has_workers = settings.effective_workers > 1
    configure_process(settings, name="supervisor" if has_workers else "")
    uvloop.run((_up_workers if has_workers else _up)(settings, demo=demo))


def reload() -> None:
    """Replace the processes of the running system one at a time; no request fails.

    The processes start from the files that are installed now; settings stay as they were.
    """
    settings = settings_module.load()
    folder = DataFolder(settings.mev_data_dir)
    folder.read_runtime()
    try:
        report = json.loads(asyncio.run(reload_workers(folder.path)))
    except ProcessUnavailableError:
        raise ConflictError(
            "the running system is one process, or its supervisor does not answer; restart "
            "`mev up`, or run it with services of its own and API_WORKERS of 2 or more",
            code="no_workers",
        ) from None
    for name, result in report.items():
        seconds = result.get("seconds")
        typer.echo(
            f"{name}: {result['problem'] if seconds is None else f'replaced in {seconds} s'}"
        )
    if any("problem" in result for result in report.values()):
        raise typer.Exit(1)


async def _up(settings: Settings, *, demo: bool) -> None:
    async with running(settings, demo=demo) as system:
        _report(settings, system, demo=demo)
        await system.serve()
        end_after_shutdown(settings)


async def _up_workers(settings: Settings, *, demo: bool) -> None:
    async with running_workers(settings, demo=demo) as system:
        _report(settings, system, demo=demo)
        await system.serve()


def _report(settings: Settings, system: System | SupervisedSystem, *, demo: bool) -> None:
    seen = sys.stderr.isatty()  # a log file is stored and read by others
    header = f"'X-API-Key: {system.master_key}'" if seen else '"X-API-Key: $(mev config key)"'
    # With workers, the control process prints these two.
    webtransport = system.webtransport if isinstance(system, System) else None
    first_password = system.first_password if isinstance(system, System) else None
    lines = [
        ("API", f"{system.api_url}  (documentation: /docs)"),
        ("Stream", f"{system.api_url.replace('http', 'ws', 1)}/api/realtime/ws"),
        *([("", f"{webtransport}  (WebTransport)")] if webtransport else []),
        ("API key", system.master_key if seen else "`mev config key` shows it"),
        ("Data", str(settings.mev_data_dir)),
        *(
            (name.capitalize(), f"{address}{'  (embedded)' if name in settings.embedded else ''}")
            for name, address in system.services.items()
        ),
        ("Native", native.describe()),
        ("Try", f"curl -H {header} '{system.api_url}/api/events/bundle?limit=5'"),
    ]
    if first_password:
        lines.append(
            (
                "Login",
                f"{FIRST_ADMIN}, {_first_password(settings, first_password, seen=seen)}",
            )
        )
    if demo:
        lines.append(
            (
                "Demo",
                (
                    "simulated opportunities, bundles and ticks are published; "
                    "every one is marked simulated"
                ),
            )
        )
    for name, value in lines:
        typer.echo(f"{typer.style(f'{name:<10}', bold=True)}  {value}", err=True)


def _first_password(settings: Settings, password: str, *, seen: bool) -> str:
    if seen:
        return f"password {password}  (shown this once; change it with `mev user password`)"
    file = FirstPassword(settings.mev_data_dir)
    file.keep(password)
    return f"password in {file.path}  (removed at the first login, or when it is changed)"
