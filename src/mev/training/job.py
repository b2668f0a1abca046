"""A training as a job: waits for its export, trains, makes the forms of the model, compares, signs and registers them."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from mev import settings as settings_module
from mev.control.keys import open_keys
from mev.core.clock import now_ns
from mev.core.files import write_atomically
from mev.jobs.context import PROGRESS, Context
from mev.jobs.model import Kind, State
from mev.models.registry import Registry
from mev.training.errors import ExportFailedError, SchedulerNotAllowedError, UnregistrableModelError
from mev.training.spec import TrainSpec, parse
from mev.wire.features import FEATURE_SCHEMAS, FeatureSchema

if TYPE_CHECKING:
    from mev.training.run import Result

KIND = "train"
REGISTERED = "model.json"
_SHOWN = frozenset({"export_id", "training", "compiled"})
_WAIT_S = 0.3


def train_kind() -> Kind:
    """Return the kind of job that trains: one at a time, since each takes all processors."""
    return Kind(name=KIND, run=work, concurrency=1, resumable=True, shows=_SHOWN)


def check_scheduler(training: TrainSpec) -> None:
    """Refuse to speak to a scheduler that this machine's owner has not named, or names no longer.

    Dask unpickles what a scheduler sends, so whoever may name one could run anything here, beside the key that signs models.

    :raises SchedulerNotAllowedError: naming it.
    """
    if training.distributed and training.distributed.scheduler not in settings_module.load().train_schedulers:
        raise SchedulerNotAllowedError(
            f"{training.distributed.scheduler} is not among TRAIN_SCHEDULERS, the schedulers that this machine trusts; add it there"
        )


def work(context: Context) -> None:
    """Do the whole of it. The places in the request are those of this machine; the signing key is read here and goes nowhere."""
    from mev.training.run import run  # noqa: PLC0415 - the API imports this module, and has no use for XGBoost

    spec = context.spec
    check_scheduler(parse(spec["training"]))  # again: it may be long ago that the job was accepted, under other settings
    export = Path(spec["export_folder"])
    _wait(context, Path(spec["export_state"]))
    schema = _schema(export)
    context.output.mkdir(parents=True, exist_ok=True)
    result = run(spec["training"], export, context.output, context, work=context.folder)
    context.check()
    context.progress(result.rounds, result.rounds, "making the model")
    made_by = {"job": context.folder.name, "trained_by": spec.get("owner_name", "")}
    model_id = _register(spec, result, schema, made_by)
    context.log.info("model %s", model_id)
    write_atomically(context.output / REGISTERED, orjson.dumps({"model_id": model_id}))


def _wait(context: Context, state: Path) -> None:
    while True:
        try:
            found = State(orjson.loads(state.read_bytes())["state"])
        except (OSError, ValueError, KeyError):
            raise ExportFailedError("the export is not there any more; export again") from None
        if found is State.SUCCEEDED:
            return
        if found.ended:
            raise ExportFailedError(f"the export {found}; its job says why")
        context.progress(*_how_far(state.with_name(PROGRESS)), "waiting for the export")
        context.check()
        time.sleep(_WAIT_S)


def _how_far(progress: Path) -> tuple[float, float]:
    """Return how far the export is, in its own units."""
    try:
        content = orjson.loads(progress.read_bytes())
        return float(content["done"]), float(content["total"]) or 1.0
    except (OSError, ValueError, KeyError, TypeError):  # it has not begun
        return 0.0, 1.0


def _schema(export: Path) -> FeatureSchema:
    """Return the features that the export's rows have, which agents must be able to compute."""
    content: Mapping[str, Any] = orjson.loads((export / "manifest.json").read_bytes())
    schema = FEATURE_SCHEMAS.get(str(content.get("feature_schema")))
    if schema is None or schema.hash != content.get("feature_schema_hash"):
        raise UnregistrableModelError("the export has no features that agents compute; train on training_examples")
    return schema


def _register(spec: Mapping[str, Any], result: "Result", schema: FeatureSchema, made_by: Mapping[str, str]) -> str:
    from mev.models.register import Trained, register  # noqa: PLC0415 - as above

    if extra := sorted(set(result.features) - set(schema.names)):
        raise UnregistrableModelError(f"{', '.join(extra)}: not among the features that agents compute")
    settings = settings_module.load()
    seed = settings.ctrl_sign_sk_hex.get_secret_value() if settings.ctrl_sign_sk_hex else None
    keys = open_keys(Path(spec["control_folder"]), seed_hex=seed, key_id=settings.ctrl_pubkey_id, now_ns=now_ns())
    trained = Trained(
        booster=result.booster,
        features=result.features,
        schema=schema,
        frozen_rows=result.frozen_rows,
        metrics=result.figures,
        lineage={**result.lineage, **made_by},
    )
    entry = register(Registry(Path(spec["model_dir"]), keys.trust), trained, keys.signing, compiled=bool(spec["compiled"]))
    return entry.manifest.model_id
