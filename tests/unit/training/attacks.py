"""Hostile trainings: each runs in place of the real one and tries one attack."""

import os
from pathlib import Path

import numpy as np
import orjson

from mev.core.errors import InvalidInputError
from mev.jobs.context import Context
from mev.scoring import manifest as manifests
from mev.training.job import work


class ReachedError(InvalidInputError):
    """The attack got what it must not."""

    code = "reached"


def signing_key() -> Path:
    """Return where the key lies that signs commands: beside the jobs."""
    return Path.cwd().parents[2] / "control" / "signing-key"


def read_environment(context: Context) -> None:
    """Look for a secret in the environment."""
    if found := sorted(
        name for name, value in os.environ.items() if "secret" in value or "KEY" in name
    ):
        raise ReachedError(", ".join(found))
    raise InvalidInputError(" ".join(sorted(os.environ)))


def link_key(context: Context) -> None:
    """Leave a link to a key among the files."""
    work(context)
    (context.output / "note.png").symlink_to(signing_key())


def link_key_hard(context: Context) -> None:
    """Leave a second name of a key among the files."""
    work(context)
    os.link(signing_key(), context.output / "note.png")


def link_output(context: Context) -> None:
    """Let the folder of the output be another one."""
    context.output.rmdir()
    context.output.symlink_to(signing_key().parent)


def lie_about_scores(context: Context) -> None:
    """Leave golden scores that are not the model's."""
    work(context)
    path = context.output / "candidate.json"
    content = orjson.loads(path.read_bytes())
    content["golden"]["scores"] = manifests._numbers(np.zeros(64, np.float32))
    path.write_bytes(orjson.dumps(content))
