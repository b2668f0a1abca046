"""Command ``mev train``."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mev.cli.api import ask_api, poll
from mev.cli.jobs import follow, full_id
from mev.cli.tables import print_table
from mev.core.errors import InvalidInputError
from mev.core.text import counted, figure, label, sol
from mev.datasets.query import Labels
from mev.training.spec import Device, Objective

_PATH, _MODELS_PATH = "/api/training", "/api/training/models"
_SET_MIN_SCORE = "mev command config min_score {} --module arbitrage"


def train(
    dataset: Annotated[
        str,
        typer.Option(
            help="Training data: a dataset, which is exported first, or the id of an export or "
            "its first 8 digits."
        ),
    ] = "training_examples",
    filter: Annotated[  # noqa: A002
        list[str] | None,
        typer.Option(
            help="A condition on the rows, for instance 'kind == \"arbitrage\"'; may be repeated."
        ),
    ] = None,
    labels: Annotated[
        Labels | None,
        typer.Option(help="agent: the agent's own bundle; market: the best of all agents."),
    ] = None,
    label_slots: Annotated[
        int | None,
        typer.Option(min=0, help="Slots after the opportunity's in which bundles count."),
    ] = None,
    include_simulated: Annotated[
        bool,
        typer.Option("--include-simulated", help="Include simulated rows."),
    ] = False,
    target: Annotated[str, typer.Option(help="Target column.")] = "landed",
    features: Annotated[
        str | None,
        typer.Option(help="Feature columns, separated by commas; default: all features."),
    ] = None,
    objective: Annotated[
        Objective, typer.Option(help="Probability, amount, or ranking within a slot.")
    ] = Objective.BINARY,
    params: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="XGBoost parameter; may be repeated."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of trees.")] = 300,
    early_stopping: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="Stop after this many rounds without improvement; 0: never."
        ),
    ] = 30,
    validation_share: Annotated[
        float, typer.Option(help="Fraction of the rows, the newest ones, used for validation.")
    ] = 0.2,
    embargo_slots: Annotated[
        int, typer.Option(min=0, help="Slots left out between training and validation.")
    ] = 32,
    class_weight: Annotated[
        str | None, typer.Option(help="balanced, or the weight of the rows whose target is 1.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[Device, typer.Option(help="auto uses a GPU if there is one.")] = Device.AUTO,
    checkpoint_every: Annotated[
        int, typer.Option(min=0, help="Rounds between checkpoints; 0: none.")
    ] = 25,
    search: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Number of search trials before training.")
    ] = None,
    search_timeout: Annotated[
        float, typer.Option(help="Seconds after which no new trial starts.")
    ] = 600.0,
    search_metric: Annotated[str | None, typer.Option(help="Metric to compare trials by.")] = None,
    search_space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH", help="Range of a searched parameter; may be repeated."
        ),
    ] = None,
    distributed: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Scheduler of a Dask cluster that trains: tcp://..."),
    ] = None,
    workers_min: Annotated[int, typer.Option(min=1, help="Minimum number of workers.")] = 1,
    deadline: Annotated[
        float,
        typer.Option(help="Time limit in seconds for the rounds between two checkpoints."),
    ] = 600.0,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also compile the model to native code.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")] = False,
) -> None:
    """Train a model, check its parity with XGBoost, sign and register it."""
    if search is None and (search_metric or search_space):
        raise InvalidInputError("--search-metric and --search-space are for --search N")
    body = {
        "dataset": full_id(dataset),
        "filter": filter or [],
        "labels": labels and labels.value,
        "label_slots": label_slots,
        "include_simulated": include_simulated,
        "target": target,
        "features": [name.strip() for name in features.split(",")] if features else None,
        "objective": objective.value,
        "params": {
            name: _number("--params", name, value) for name, value in _pairs("--params", params)
        },
        "rounds": rounds,
        "early_stopping_rounds": early_stopping,
        "validation_share": validation_share,
        "embargo_slots": embargo_slots,
        "class_weight": class_weight
        if class_weight in {None, "balanced"}
        else _number("--class-weight", "", str(class_weight)),
        "seed": seed,
        "device": device.value,
        "checkpoint_every": checkpoint_every,
        "search": _search(search, search_timeout, search_metric, search_space),
        "distributed": {
            "scheduler": distributed,
            "workers_min": workers_min,
            "deadline_s": deadline,
        }
        if distributed
        else None,
        "compiled": compiled,
    }
    answer = ask_api("POST", f"{_PATH}/train", body)
    job_id = answer.json()["id"]
    for note in answer.json()["notes"]:
        typer.echo(note, err=True)
    if wait:
        done = follow(job_id)
        answer = poll(f"{_PATH}/jobs/{job_id}")
    if json:
        typer.echo(answer.text)
        return
    if not wait:
        typer.echo(f"training {job_id}; `mev jobs show {job_id}` says how far it is")
        return
    training = answer.json()
    typer.echo(f"model {training['model_id']}")
    typer.echo(
        f"learned from export {done['spec']['export_id']}: {_rows(training['result']['rows'])}"
    )
    typer.echo(f"card {answer.url.join(_MODELS_PATH)}/{training['model_id']}/card")
    intervals = training["result"].get("intervals", {})
    rows = [
        (
            label(name),
            figure(name, value),
            " to ".join(figure(name, bound) for bound in intervals.get(name, ())),
        )
        for name, value in training["result"]["metrics"].items()
    ]
    print_table(("metric", "value", "95 % interval"), rows)
    for warning in training["result"].get("warnings", ()):
        typer.echo(f"warning: {warning}", err=True)
    for line in _recommendation(training["result"]):
        typer.echo(line)
    if found := training["result"].get("search"):
        typer.echo(
            f"best of {counted(len(found['trials']), 'trial')}, chosen by the rows that validate:"
        )
        print_table(
            ("parameter", "value"),
            [(name, f"{value:.6g}") for name, value in found["params"].items()],
        )


def _rows(rows: dict[str, Any]) -> str:
    """Return the number of rows used, and of simulated rows used or left out."""
    used = counted(rows["train"] + rows["validation"], "row")
    if left_out := rows.get("simulated_left_out"):
        return f"{used}, without {left_out} simulated"
    return f"{used}, {rows['simulated']} of them simulated"


def _recommendation(result: dict[str, Any]) -> list[str]:
    """Return the most profitable threshold on the validation rows, and how to set it."""
    metrics, rows = result["metrics"], counted(result["rows"]["validation"], "row")
    if "all_profit_lamports" not in metrics:
        return []
    everything = f"taking all {rows} that validate earns {sol(metrics['all_profit_lamports'])}"
    if (min_score := metrics.get("recommended_min_score")) is None:
        return [f"no threshold earns anything: {everything}; do not trade on this model"]
    if min_score == 0:
        best = (
            f"the best threshold, {metrics['best_threshold']:.3g}, earns "
            f"{sol(metrics['best_profit_lamports'])}"
        )
        return [
            f"no min_score earns clearly more: {everything}, {best}",
            f"set it with: {_SET_MIN_SCORE.format(0)}",
        ]
    best = f"min_score {min_score:.10g} earns {sol(metrics['best_profit_lamports'])}"
    return [f"{best}; {everything}", f"set it with: {_SET_MIN_SCORE.format(f'{min_score:.10g}')}"]


def _search(
    trials: int | None, timeout_s: float, metric: str | None, space: Sequence[str] | None
) -> dict[str, Any] | None:
    if trials is None:
        return None
    ranges = {name: _range(name, bounds) for name, bounds in _pairs("--search-space", space)}
    return {
        "trials": trials,
        "timeout_s": timeout_s,
        "metric": metric,
        **({"space": ranges} if ranges else {}),
    }


def _pairs(option: str, given: Sequence[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidInputError(
                f"{option} {text!r}: expected a name, =, and a value, as in eta=0.05"
            )
        pairs.append((name.strip(), value.strip()))
    return pairs


def _range(name: str, text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    return _number("--search-space", name, low), _number("--search-space", name, high)


def _number(option: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise InvalidInputError(
            f"{option} {name}{'=' if name else ''}{text}: {text!r} is no number"
        ) from None
    return int(number) if number.is_integer() else number
