"""``mev train``."""

from typing import Annotated

import typer

from mev.core.terminal import print_table
from mev.jobs.commands import follow
from mev.training.routes import PATH
from mev.training.spec import Device, Objective
from mev.wiring import ask_api


def train(
    dataset: Annotated[
        str, typer.Option(help="What to learn from: a dataset, which is exported first, or the id of an export.")
    ] = "training_examples",
    target: Annotated[str, typer.Option(help="Column to learn.")] = "landed",
    features: Annotated[str | None, typer.Option(help="Columns to learn from, separated by commas; all features without it.")] = None,
    objective: Annotated[Objective, typer.Option(help="How likely, or how much.")] = Objective.BINARY,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Trees at most.")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.AUTO,
    compiled: Annotated[bool, typer.Option("--compiled", help="Make native code beside the data-only form.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")] = False,
) -> None:
    """Train a model, compare its forms with XGBoost, sign and register it."""
    body = {
        "dataset": dataset,
        "target": target,
        "features": [name.strip() for name in features.split(",")] if features else None,
        "objective": objective.value,
        "rounds": rounds,
        "seed": seed,
        "device": device.value,
        "compiled": compiled,
    }
    answer = ask_api("POST", f"{PATH}/train", body)
    job_id = answer.json()["id"]
    if wait:
        follow(job_id)
        answer = ask_api("GET", f"{PATH}/jobs/{job_id}")
    if json:
        typer.echo(answer.text)
        return
    if not wait:
        typer.echo(f"training {job_id}; `mev jobs show {job_id}` says how far it is")
        return
    training = answer.json()
    typer.echo(f"model {training['model_id']}")
    print_table(("metric", "value"), [(name, f"{value:.6g}") for name, value in training["result"]["metrics"].items()])
