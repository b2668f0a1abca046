"""Training as a job.

This process waits for the export, another one trains and builds the forms, and this one checks and
signs them.
"""

import time
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from mev import settings as settings_module
from mev.core.files import write_atomically
from mev.jobs.context import PROGRESS, Context
from mev.jobs.model import Given, JobKind, JobState
from mev.registry import candidate
from mev.registry.re_sign import Notary
from mev.registry.registry import Registry
from mev.training.errors import (
    ExportFailedError,
    SchedulerNotAllowedError,
    SchedulerNotEncryptedError,
    UnregistrableModelError,
)
from mev.training.spec import TrainSpec, parse
from mev.wire.features import FEATURE_SCHEMAS, FeatureSchema

KIND = "train"
REGISTERED = "model.json"
_SHOWN = frozenset({"export_id", "training", "compiled", "notes"})
_WAIT_S = 0.3


FetchExport = Callable[[str, Path, Callable[[], None]], None]
"""Copies the files of an export to a folder, given its id and a check that raises to stop it."""


def nothing_fetched(_export_id: str, _folder: Path, _check: Callable[[], None]) -> None:
    """Do nothing: the default where all exports are complete on this machine."""


def train_kind(registry: Registry, notary: Notary, fetch: FetchExport = nothing_fetched) -> JobKind:
    """Return the training job kind; models are added to `registry`, signed by `notary`.

    `fetch` completes exports of other replicas. One training runs at a time, because it uses all
    processors.
    """

    def finish(context: Context) -> None:
        sign(context, registry, notary)

    return JobKind(
        name=KIND,
        run=work,
        prepare=lambda context: prepare(context, fetch),
        finish=finish,
        concurrency=1,
        resumable=True,
        shows=_SHOWN,
    )


def check_scheduler(training: TrainSpec) -> None:
    """Check that the scheduler is in TRAIN_SCHEDULERS.

    Dask unpickles what a scheduler sends, so a scheduler can run code here, beside the key that
    signs models.

    :raises SchedulerNotAllowedError, SchedulerNotEncryptedError: naming it.
    """
    if training.distributed is None:
        return
    settings, scheduler = settings_module.load(), training.distributed.scheduler
    if scheduler not in settings.train_schedulers:
        raise SchedulerNotAllowedError(
            f"{scheduler} is not among TRAIN_SCHEDULERS, the schedulers that this machine trusts;"
            " add it there"
        )
    if scheduler.startswith("tls://"):
        if not settings.train_tls_files:
            raise SchedulerNotEncryptedError(
                f"{scheduler} wants certificates: set TRAIN_TLS_CA_FILE, TRAIN_TLS_CERT_FILE and"
                " TRAIN_TLS_KEY_FILE"
            )
    elif not _is_local(scheduler):
        raise SchedulerNotEncryptedError(
            f"{scheduler} is on another machine: start it with TLS and name it tls://;"
            " who stands between could run code on both sides"
        )


def _is_local(scheduler: str) -> bool:
    host = urlsplit(scheduler).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls() -> dict[str, str] | None:
    """Return the PEM texts for TLS to a scheduler; the training process cannot read their files."""
    if not (files := settings_module.load().train_tls_files):
        return None
    try:
        return dict(zip(("ca", "cert", "key"), (file.read_text() for file in files), strict=True))
    except (OSError, UnicodeDecodeError) as error:
        raise SchedulerNotEncryptedError(f"a file of TRAIN_TLS_* cannot be read: {error}") from None


def prepare(context: Context, fetch: FetchExport = nothing_fetched) -> Given:
    """Wait for the export, complete it, and return the input of the training process.

    It contains no signing key and no settings; for distributed training, it has the TLS
    certificates and the private key for the Dask scheduler.
    """
    spec = context.spec
    training = parse(spec["training"])
    # Check again: the settings may have changed since the job was accepted.
    check_scheduler(training)
    for note in spec.get("notes", ()):
        context.log.info("%s", note)
    export = Path(spec["export_folder"])
    _wait(context, Path(spec["export_state"]))
    fetch(str(spec["export_id"]), export, context.check)
    given = {
        "training": spec["training"],
        "compiled": spec["compiled"],
        "schema": _schema(export).name,
    }
    if training.distributed:
        given["tls"] = _tls()
    return Given(spec=given, folders={"export": export}, network=training.distributed is not None)


def work(context: Context) -> None:
    """Train a model and write it, unsigned, to the output.

    The parent checks it, see :mod:`mev.registry.candidate`.
    """
    # The API imports this module, and has no use for XGBoost.
    from mev.registry.register import Trained, build  # noqa: PLC0415
    from mev.training.run import run  # noqa: PLC0415 - as above

    spec, schema = context.spec, FEATURE_SCHEMAS[context.spec["schema"]]
    result = run(
        spec["training"],
        Path(spec["export"]),
        context.output,
        context,
        work=context.folder,
        tls=spec.get("tls"),
    )
    context.check()
    context.progress(result.rounds, result.rounds, "making the model")
    if extra := sorted(set(result.features) - set(schema.names)):
        raise UnregistrableModelError(
            f"{', '.join(extra)}: not among the features that agents compute"
        )
    trained = Trained(
        booster=result.booster,
        features=result.features,
        schema=schema,
        frozen_rows=result.frozen_rows,
        metrics=result.figures,
        lineage=result.lineage,
    )
    candidate.write(context.output, build(trained, compiled=bool(spec["compiled"])))


def sign(context: Context, registry: Registry, notary: Notary) -> None:
    """Check the unsigned model in the output, sign it and register it."""
    context.check()
    spec = context.spec
    made_by = {
        "job": context.folder.name,
        "export": spec["export_id"],
        "trained_by": spec.get("owner_name", ""),
    }
    entry = candidate.register(
        registry, context.output, notary.model_signer(), made_by, compiled=bool(spec["compiled"])
    )
    context.log.info("model %s", entry.manifest.model_id)
    write_atomically(
        context.output / REGISTERED, orjson.dumps({"model_id": entry.manifest.model_id})
    )


def _wait(context: Context, state: Path) -> None:
    while True:
        try:
            found = JobState(orjson.loads(state.read_bytes())["state"])
        except (OSError, ValueError, KeyError):
            raise ExportFailedError(
                f"export {state.parent.name} is not there any more; export again",
                export=state.parent.name,
            ) from None
        if found is JobState.SUCCEEDED:
            return
        if found.ended:
            raise _export_failed(state)
        context.progress(*_how_far(state.with_name(PROGRESS)), "waiting for the export")
        context.check()
        time.sleep(_WAIT_S)


def _export_failed(state: Path) -> ExportFailedError:
    """Return the error of a failed export, from its job's state."""
    content = orjson.loads(state.read_bytes())
    export_id, error = state.parent.name, content.get("error") or {}
    why = f": {error.get('detail')} ({error.get('code')})" if error else ""
    return ExportFailedError(
        f"export {export_id} {content['state']}{why}; `mev jobs log {export_id}` has its log",
        export=export_id,
        reason=error.get("code"),
    )


def _how_far(progress: Path) -> tuple[float, float]:
    """Return the progress of the export, in its own units."""
    try:
        content = orjson.loads(progress.read_bytes())
        return float(content["done"]), float(content["total"]) or 1.0
    except (OSError, ValueError, KeyError, TypeError):  # not started yet
        return 0.0, 1.0


def _schema(export: Path) -> FeatureSchema:
    """Return the feature schema of the export, which agents must be able to compute."""
    content: Mapping[str, Any] = orjson.loads((export / "manifest.json").read_bytes())
    schema = FEATURE_SCHEMAS.get(str(content.get("feature_schema")))
    if schema is None or schema.hash != content.get("feature_schema_hash"):
        raise UnregistrableModelError(
            "the export has no features that agents compute; train on training_examples"
        )
    return schema
