"""Command ``mev models``."""

import json as json_module
from typing import Annotated, Any
from urllib.parse import quote

import typer

from mev.cli.api import ApiError, ask_api
from mev.cli.tables import Id, print_table
from mev.core.errors import InvalidInputError, MevError
from mev.core.text import counted, figure, label

Json = Annotated[bool, typer.Option("--json", help="Print the API's answer as it is.")]
Model = Annotated[
    str, typer.Argument(help="The id of a model, its first 8 digits or more, or an alias.")
]
models = typer.Typer(
    help="List, show, compare, alias, archive and sign registered models.", no_args_is_help=True
)
_PATH = "/api/training/models"
_COLUMNS = (
    "id",
    "created_at",
    "target",
    "features",
    "trees",
    "auc",
    "log_loss",
    "rmse",
    "aliases",
    "archived",
)
_SPARE = ("trees", "features", "archived", "log_loss", "created_at", "target")
"""Columns left out in a terminal that is too narrow, the first ones first."""
_SHOWN_METRICS = ("auc", "log_loss", "rmse")


@models.callback()
def _group() -> None:
    """List, show, compare, alias, archive and sign registered models."""


@models.command("list")
def list_models(
    archived: Annotated[bool, typer.Option("--archived", help="Include archived models.")] = False,
    alias: Annotated[str | None, typer.Option(help="Only the model with this alias.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Only models trained on this target column.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    json: Json = False,
) -> None:
    """List the models, newest first, and those with a refused manifest."""
    given = {
        "archived": "true" if archived else None,
        "alias": alias,
        "target": target,
        "limit": str(limit),
    }
    answer = ask_api(
        "GET", _PATH, params={name: value for name, value in given.items() if value is not None}
    )
    if json:
        typer.echo(answer.text)
        return
    content = answer.json()
    print_table(_COLUMNS, [_row(item) for item in content["items"]], spare=_SPARE)
    if content["next_cursor"]:
        typer.echo("there are more; --limit shows up to 1000", err=True)
    if content["refused"]:
        typer.echo("")
        print_table(
            ("refused", "because"),
            [(Id(model_id), reason) for model_id, reason in content["refused"].items()],
        )


@models.command("show")
def show(name: Model, json: Json = False) -> None:
    """Show a model: training data, metrics and files."""
    answer = ask_api("GET", _path(name))
    if json:
        typer.echo(answer.text)
        return
    model = answer.json()
    typer.echo(f"model {model['id']}")
    pairs: list[tuple[str, object]] = [
        (key, model[key]) for key in ("created_at", "objective", "feature_schema", "trees")
    ]
    pairs += [("aliases", ", ".join(model["aliases"])), ("archived", model["archived_at"] or "")]
    pairs += [(f"{form} sha256", digest) for form, digest in model["forms"].items()]
    pairs += [
        (
            "parity",
            (
                f"{counted(round(model['parity']['rows']), 'row')}, off by "
                f"{model['parity']['max_abs_diff']:g} at most"
            ),
        )
    ]
    pairs += [("features", ", ".join(model["features"]))]
    pairs += [(key, _text(value)) for key, value in model["lineage"].items() if key != "spec"]
    pairs += [
        (f"spec.{key}", _text(value))
        for key, value in (model["lineage"].get("spec") or {}).items()
        if key != "features"
    ]
    print_table(("field", "value"), pairs)
    typer.echo("")
    print_table(
        ("metric", "value"),
        [(label(key), _number(key, value)) for key, value in model["metrics"].items()],
    )


@models.command("compare")
def compare(a: Model, b: Model, json: Json = False) -> None:
    """Compare two models: metrics, parameters and features."""
    answer = ask_api("GET", f"{_PATH}/compare", params={"a": a, "b": b})
    if json:
        typer.echo(answer.text)
        return
    content = answer.json()
    first, second = (content[side]["id"][:12] for side in "ab")
    for caveat in content["caveats"]:
        typer.echo(f"not to be compared: {caveat}")
    metrics = [
        (label(name), *(_number(name, sides[side]) for side in ("a", "b", "difference")))
        for name, sides in content["metrics"].items()
    ]
    print_table(("metric", first, second, "difference"), metrics)
    others = [
        (name, _text(sides["a"]), _text(sides["b"]))
        for name, sides in content["parameters"].items()
    ]
    others += [(f"feature {name}", "yes", "no") for name in content["features"]["only_a"]]
    others += [(f"feature {name}", "no", "yes") for name in content["features"]["only_b"]]
    typer.echo("")
    if others:
        print_table(("differs", first, second), others)
    else:
        typer.echo("parameters and features are the same")


@models.command("alias")
def alias(
    alias: Annotated[
        str,
        typer.Argument(help="Alias; champion, challenger and shadow are managed by deployments."),
    ],
    name: Annotated[str | None, typer.Argument(help="Model of the alias.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    json: Json = False,
) -> None:
    """Point an alias to a model, or remove it."""
    if remove == (name is not None):
        raise InvalidInputError("name a model, or give --remove")
    path = f"{_PATH}/aliases/{quote(alias, safe='')}"
    if name is None:
        ask_api("DELETE", path)
        typer.echo("{}" if json else f"{alias} names nothing now")
        return
    _print(ask_api("PUT", path, {"model": name}).json(), f"{alias} names", json=json)


@models.command("archive")
def archive(name: Model, json: Json = False) -> None:
    """Archive a model: it is hidden from the list, and its files stay."""
    _print(ask_api("POST", f"{_path(name)}/archive").json(), "archived", json=json)


@models.command("restore")
def restore(name: Model, json: Json = False) -> None:
    """Restore an archived model to the list."""
    _print(ask_api("POST", f"{_path(name)}/restore").json(), "listed again:", json=json)


@models.command("sign")
def sign(
    name: Annotated[
        str | None,
        typer.Argument(help="The id of a model, its first 8 digits or more, or an alias."),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Every model refused because its key was replaced."),
    ] = False,
    json: Json = False,
) -> None:
    """Sign manifests again after `mev rotate-key`.

    Accepts manifests that the previous key signed while it was valid, with unchanged files.
    """
    if every == (name is not None):
        raise InvalidInputError("name a model, or give --all")
    if name is not None:
        _print(ask_api("POST", f"{_path(name)}/sign").json(), "signed:", json=json)
        return
    refused = ask_api("GET", _PATH, params={"archived": "true", "limit": "1"}).json()["refused"]
    results = {
        model_id: _signed(model_id)
        for model_id, reason in refused.items()
        if reason.startswith("unsigned_manifest")
    }
    if json:
        typer.echo(json_module.dumps(results))
    elif not results:
        typer.echo("no model is refused for its signature")
    else:
        print_table(
            ("model", "result"), [(Id(model_id), result) for model_id, result in results.items()]
        )
    if failed := [model_id for model_id, result in results.items() if result != "signed"]:
        raise MevError(
            f"refused as before: {len(failed)} of {len(results)}; the table says why",
            code="not_all_signed",
        )


def _signed(model_id: str) -> str:
    try:
        ask_api("POST", f"{_path(model_id)}/sign")
    except ApiError as error:
        return error.detail
    return "signed"


def _path(name: str) -> str:
    return f"{_PATH}/{quote(name, safe='')}"


def _print(model: dict[str, Any], what: str, *, json: bool) -> None:
    typer.echo(json_module.dumps(model) if json else f"{what} {model['id']}")


def _row(item: dict[str, Any]) -> tuple[object, ...]:
    metrics = [_number(name, item["metrics"].get(name)) for name in _SHOWN_METRICS]
    target = (item["lineage"].get("spec") or {}).get("target", "")
    archived = (item["archived_at"] or "")[:10]
    created_at = item["created_at"][:19].replace("T", " ")
    return (
        Id(item["id"]),
        created_at,
        target,
        len(item["features"]),
        item["trees"],
        *metrics,
        ", ".join(item["aliases"]),
        archived,
    )


def _number(name: str, value: object) -> str:
    return (
        figure(name, value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else ""
        if value is None
        else str(value)
    )


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json_module.dumps(value)
