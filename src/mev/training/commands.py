"""``mev train``."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mev.core.errors import InvalidInputError
from mev.core.terminal import print_table
from mev.core.text import counted
from mev.jobs.commands import follow, full_id
from mev.models.routes import PATH as MODELS_PATH
from mev.training.goals import Objective
from mev.training.routes import PATH
from mev.training.spec import Device
from mev.wiring import ask_api, poll


def train(
    dataset: Annotated[
        str, typer.Option(help="What to learn from: a dataset, which is exported first, or the id of an export or its first 8 digits.")
    ] = "training_examples",
    target: Annotated[str, typer.Option(help="Column to learn.")] = "landed",
    features: Annotated[str | None, typer.Option(help="Columns to learn from, separated by commas; all features without it.")] = None,
    objective: Annotated[Objective, typer.Option(help="How likely, how much, or which of a slot first.")] = Objective.BINARY,
    params: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="How trees are grown; as often as wanted.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Trees at most.")] = 300,
    early_stopping: Annotated[int, typer.Option(min=0, max=1000, help="Rounds without a better validation; 0: never stop.")] = 30,
    validation_share: Annotated[float, typer.Option(help="The newest share of rows, which validates.")] = 0.2,
    embargo_slots: Annotated[int, typer.Option(min=0, help="Slots left out between learning and validation.")] = 32,
    class_weight: Annotated[str | None, typer.Option(help="balanced, or the weight of the rows whose target is 1.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.AUTO,
    checkpoint_every: Annotated[int, typer.Option(min=0, help="Rounds between checkpoints; 0: none.")] = 25,
    search: Annotated[int | None, typer.Option(min=1, max=1000, help="Try so many sets of parameters first.")] = None,
    search_timeout: Annotated[float, typer.Option(help="Seconds after which no further trial begins.")] = 600.0,
    search_metric: Annotated[str | None, typer.Option(help="What trials are judged by.")] = None,
    search_space: Annotated[
        list[str] | None, typer.Option(metavar="NAME=LOW:HIGH", help="A parameter that is searched; as often as wanted.")
    ] = None,
    distributed: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Scheduler of a Dask cluster that trains: tcp://...")] = None,
    workers_min: Annotated[int, typer.Option(min=1, help="Workers without which it does not go on.")] = 1,
    deadline: Annotated[float, typer.Option(help="Seconds that the workers have for the rounds between two checkpoints.")] = 600.0,
    compiled: Annotated[bool, typer.Option("--compiled", help="Make native code beside the data-only form.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")] = False,
) -> None:
    """Train a model, compare its forms with XGBoost, sign and register it."""
    if search is None and (search_metric or search_space):
        raise InvalidInputError("--search-metric and --search-space are for --search N")
    body = {
        "dataset": full_id(dataset),
        "target": target,
        "features": [name.strip() for name in features.split(",")] if features else None,
        "objective": objective.value,
        "params": {name: _number("--params", name, value) for name, value in _pairs("--params", params)},
        "rounds": rounds,
        "early_stopping_rounds": early_stopping,
        "validation_share": validation_share,
        "embargo_slots": embargo_slots,
        "class_weight": class_weight if class_weight in {None, "balanced"} else _number("--class-weight", "", str(class_weight)),
        "seed": seed,
        "device": device.value,
        "checkpoint_every": checkpoint_every,
        "search": _search(search, search_timeout, search_metric, search_space),
        "distributed": {"scheduler": distributed, "workers_min": workers_min, "deadline_s": deadline} if distributed else None,
        "compiled": compiled,
    }
    answer = ask_api("POST", f"{PATH}/train", body)
    job_id = answer.json()["id"]
    if wait:
        done = follow(job_id)
        answer = poll(f"{PATH}/jobs/{job_id}")
    if json:
        typer.echo(answer.text)
        return
    if not wait:
        typer.echo(f"training {job_id}; `mev jobs show {job_id}` says how far it is")
        return
    training = answer.json()
    typer.echo(f"model {training['model_id']}")
    typer.echo(f"learned from export {done['spec']['export_id']}")
    typer.echo(f"card {answer.url.join(MODELS_PATH)}/{training['model_id']}/card")
    print_table(("metric", "value"), [(name, f"{value:.6g}") for name, value in training["result"]["metrics"].items()])
    if found := training["result"].get("search"):
        typer.echo(f"best of {counted(len(found['trials']), 'trial')}, chosen by the rows that validate:")
        print_table(("parameter", "value"), [(name, f"{value:.6g}") for name, value in found["params"].items()])


def _search(trials: int | None, timeout_s: float, metric: str | None, space: Sequence[str] | None) -> dict[str, Any] | None:
    if trials is None:
        return None
    ranges = {name: _range(name, bounds) for name, bounds in _pairs("--search-space", space)}
    return {"trials": trials, "timeout_s": timeout_s, "metric": metric, **({"space": ranges} if ranges else {})}


def _pairs(option: str, given: Sequence[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidInputError(f"{option} {text!r}: expected a name, =, and a value, as in eta=0.05")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _range(name: str, text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    return _number("--search-space", name, low), _number("--search-space", name, high)


def _number(option: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise InvalidInputError(f"{option} {name}{'=' if name else ''}{text}: {text!r} is no number") from None
    return int(number) if number.is_integer() else number
