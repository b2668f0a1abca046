"""Check of a cluster's workers before they train: same code, same export, no secrets."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xgboost as xgb

import mev
from mev.settings import secrets_in
from mev.training import data
from mev.training.errors import UnequalWorkersError, WorkerHasSecretsError
from mev.training.rows import TrainingData


async def check_equal(client: Any, workers: Sequence[str], training_data: TrainingData) -> None:
    """Check that all workers have the same code and see the same export.

    :raises UnequalWorkersError: naming one that does not.
    :raises WorkerHasSecretsError: naming one that could read a secret of this program.
    :raises OSError: when one is gone.
    """
    export = training_data.export
    manifest = str(export.parts[0].resolve().with_name(data.MANIFEST))
    wanted = {"mev": mev.__version__, "xgboost": xgb.__version__, "export": export.manifest_sha256}
    found = await client.run(_identify, manifest, workers=list(workers), on_error="return")
    for address, answer in found.items():
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, Exception):
            raise UnequalWorkersError(
                f"worker {address} cannot run mev: {answer}; "
                "run `.venv/bin/pip install -e '.[train,dist]'` there"
                f" {mev.__version__} there"
            )
        if secrets := answer["secrets"]:
            raise WorkerHasSecretsError(
                f"worker {address} has {secrets} in its environment, which every task could read; "
                "start it without: "
                'env -i PATH="$PATH" HOME="$HOME" dask worker ...'
            )
        for name, value in wanted.items():
            if answer[name] != value:
                remedy = (
                    "let it see the folder under the same path"
                    if name == "export"
                    else f"install {name} {value} there"
                )
                raise UnequalWorkersError(
                    f"worker {address} has {answer[name] or 'nothing'} as {name} ({manifest});"
                    f" {remedy}"
                )


def _identify(manifest: str) -> dict[str, str | None]:
    try:
        digest = hashlib.sha256(Path(manifest).read_bytes()).hexdigest()
    except OSError:
        digest = None
    secrets = ", ".join(secrets_in(os.environ))
    return {
        "mev": mev.__version__,
        "xgboost": xgb.__version__,
        "export": digest,
        "secrets": secrets,
    }
