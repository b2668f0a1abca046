"""``mev jobs``."""

import json as json_module
import time
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mev.core.errors import MevError
from mev.core.terminal import print_table
from mev.core.text import shown
from mev.wiring import ask_api

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
jobs = typer.Typer(help="Work that takes its time: exports, training.", no_args_is_help=True)
_COLUMNS = ("id", "kind", "state", "owner", "created_at", "progress", "note")
_ENDED = frozenset({"succeeded", "failed", "cancelled"})
_POLL_S = 0.3


class JobNotDoneError(MevError):
    """The job did not succeed."""

    code = "job_not_done"


@jobs.callback()
def _group() -> None:
    """Look at work that takes its time, and end it."""


@jobs.command("list")
def list_jobs(
    kind: Annotated[str | None, typer.Option(help="Only this kind, for instance export.")] = None,
    state: Annotated[str | None, typer.Option(help="Only those: queued, running, cancelling, succeeded, failed, cancelled.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    filters = {"kind": kind, "state": state, "limit": limit}
    answer = ask_api("GET", f"/api/jobs?{urlencode({name: value for name, value in filters.items() if value is not None})}")
    if json:
        typer.echo(answer.text)
        return
    print_table(_COLUMNS, [_row(item) for item in answer.json()["items"]])


@jobs.command("show")
def show(job_id: str, json: Json = False) -> None:
    """Show a job: state, progress and, when it failed, why."""
    answer = ask_api("GET", f"/api/jobs/{job_id}")
    if json:
        typer.echo(answer.text)
        return
    job = answer.json()
    print_table(_COLUMNS, [_row(job)])
    if job["error"]:
        typer.echo(f"failed: {shown(job['error']['detail'])}")


@jobs.command("log")
def log(job_id: str) -> None:
    """Print a job's log."""
    typer.echo(shown(ask_api("GET", f"/api/jobs/{job_id}/log").text), nl=False)


@jobs.command("cancel")
def cancel(job_id: str) -> None:
    """End a job; what it made is removed."""
    typer.echo(ask_api("DELETE", f"/api/jobs/{job_id}").json()["state"])


def follow(job_id: str) -> dict[str, Any]:
    """Show how far a job is until it has succeeded, and return it.

    :raises JobNotDoneError: when it ends otherwise.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("waiting", total=1.0)
        while True:
            job: dict[str, Any] = ask_api("GET", f"/api/jobs/{job_id}").json()
            progress = job["progress"] or {"share": 0.0, "note": ""}
            bar.update(task, completed=progress["share"], description=shown(progress["note"] or job["state"]))
            if job["state"] in _ENDED:
                break
            time.sleep(_POLL_S)
    if job["state"] != "succeeded":
        why = job["error"]["detail"] if job["error"] else f"it was {job['state']}"
        raise JobNotDoneError(f"job {job_id}: {why}")
    return job


def print_job(job: dict[str, Any], *, json: bool) -> None:
    """Print a job as `mev jobs show` does."""
    if json:
        typer.echo(json_module.dumps(job))
    else:
        print_table(_COLUMNS, [_row(job)])


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    progress = job["progress"]
    share = f"{progress['share']:.0%}" if progress else ""
    return (*(job[name] for name in _COLUMNS[:4]), job["created_at"][:19], share, progress["note"] if progress else "")
