"""Command ``mev jobs``."""

import json as json_module
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mev.cli.api import ask_api, poll, whole_id
from mev.cli.tables import Id, print_table
from mev.core.errors import MevError
from mev.core.text import shown

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
JobId = Annotated[str, typer.Argument(help="The id of a job, or its first 8 digits or more.")]
jobs = typer.Typer(
    help="List, show, follow and cancel jobs: exports and training.", no_args_is_help=True
)
_COLUMNS = ("id", "kind", "state", "owner", "created_at", "progress", "left", "note")
_BAR_CELLS = 12
_PATH = "/api/jobs"
_ENDED = frozenset({"succeeded", "failed", "cancelled"})
_POLL_S = 0.3


@jobs.callback()
def _group() -> None:
    """List, show and cancel jobs."""


@jobs.command("list")
def list_jobs(
    kind: Annotated[str | None, typer.Option(help="Only this kind, for instance export.")] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="Only this state: queued, running, cancelling, succeeded, failed, cancelled."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    filters = {"kind": kind, "state": state, "limit": limit}
    answer = ask_api(
        "GET",
        f"{_PATH}?"
        f"{urlencode({name: value for name, value in filters.items() if value is not None})}",
    )
    if json:
        typer.echo(answer.text)
        return
    print_table(_COLUMNS, [_row(item) for item in answer.json()["items"]])


@jobs.command("show")
def show(job_id: JobId, json: Json = False) -> None:
    """Show a job: state, progress and the error of a failed one."""
    answer = ask_api("GET", f"{_PATH}/{full_id(job_id)}")
    if json:
        typer.echo(answer.text)
        return
    job = answer.json()
    print_table(_COLUMNS, [_row(job)])
    if job["error"]:
        typer.echo(f"failed: {shown(job['error']['detail'])}")


@jobs.command("log")
def log(job_id: JobId) -> None:
    """Print a job's log."""
    typer.echo(shown(ask_api("GET", f"{_PATH}/{full_id(job_id)}/log").text), nl=False)


@jobs.command("cancel")
def cancel(job_id: JobId) -> None:
    """Cancel a job and remove its results."""
    typer.echo(ask_api("DELETE", f"{_PATH}/{full_id(job_id)}").json()["state"])


@jobs.command("follow")
def follow_some(
    job_ids: Annotated[
        list[str] | None, typer.Argument(help="Job ids; default: all queued and running jobs.")
    ] = None,
) -> None:
    """Show the progress of jobs until they have ended."""
    given = [full_id(job_id) for job_id in job_ids or ()]
    wanted = list(dict.fromkeys(given)) or [
        job["id"] for state in ("running", "cancelling", "queued") for job in _jobs(state)
    ]
    if not wanted:
        typer.echo("no job waits or runs; `mev jobs list` has those that have ended")
        return
    ended = _until_ended(wanted, _name)
    print_table(_COLUMNS, [_row(job) for job in ended])
    if any(job["state"] != "succeeded" for job in ended):
        raise typer.Exit(1)


def full_id(given: str) -> str:
    """Return the id of the job with this prefix."""
    return whole_id(given, _PATH)


def follow(job_id: str) -> dict[str, Any]:
    """Show the progress of a job until it has succeeded, and return it.

    :raises MevError: when the job fails or is cancelled.
    """
    (job,) = _until_ended([job_id], lambda _: "")
    if job["state"] != "succeeded":
        why = job["error"]["detail"] if job["error"] else f"it was {job['state']}"
        raise MevError(f"job {job_id}: {why}", code="job_not_done")
    return job


def _jobs(state: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask_api(
        "GET", f"{_PATH}?{urlencode({'state': state, 'limit': 1000})}"
    ).json()["items"]
    return found


def _name(job: dict[str, Any]) -> str:
    return f"{job['kind']} {job['id'][:13]}  "


def _until_ended(
    job_ids: Sequence[str], name: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    ended: dict[str, dict[str, Any]] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {job_id: bars.add_task("waiting", total=1.0, left="") for job_id in job_ids}
        while len(ended) < len(tasks):
            for job_id, task in tasks.items():
                if job_id in ended:
                    continue
                job: dict[str, Any] = poll(f"{_PATH}/{job_id}").json()
                progress = job["progress"] or {"share": 0.0, "note": ""}
                said = shown(
                    progress["note"]
                    if progress["note"] and job["state"] == "running"
                    else job["state"]
                )
                bars.update(
                    task,
                    completed=progress["share"],
                    description=f"{name(job)}{said}",
                    left=_left(job),
                )
                if job["state"] in _ENDED:
                    ended[job_id] = job
            if len(ended) < len(tasks):
                time.sleep(_POLL_S)
    return [ended[job_id] for job_id in tasks]


def print_job(job: dict[str, Any], *, json: bool) -> None:
    """Print a job like `mev jobs show`."""
    if json:
        typer.echo(json_module.dumps(job))
    else:
        print_table(_COLUMNS, [_row(job)])


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    progress = job["progress"]
    note = progress["note"] if progress else ""
    why = job["error"]["code"] if job["error"] else note
    created_at = job["created_at"][:19].replace("T", " ")
    return (
        Id(job["id"]),
        *(job[name] for name in _COLUMNS[1:4]),
        created_at,
        _bar(job),
        _left(job),
        why,
    )


def _bar(job: dict[str, Any]) -> str:
    if not job["progress"]:
        return ""
    share = job["progress"]["share"]
    full = int(share * _BAR_CELLS)  # rounded down: only a finished job has a full bar
    return f"{'━' * full}{'─' * (_BAR_CELLS - full)} {int(share * 100):3d}%"


def _left(job: dict[str, Any]) -> str:
    seconds = (job["progress"] or {}).get("remaining_s")
    return (
        "" if seconds is None or job["state"] in _ENDED else f"~{timedelta(seconds=round(seconds))}"
    )
