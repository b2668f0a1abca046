"""Storage of deployments, one file each, written atomically."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from mev.core.files import write_atomically
from mev.rollout.model import (
    Artifact,
    Deployment,
    DeploymentState,
    DeploymentStep,
    RuleResult,
    Rules,
    RuleVerdict,
    Stage,
    StepOrder,
)

LOG = logging.getLogger(__name__)
_SUFFIX = ".json"


class Folder:
    """The folder of all deployments."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, deployment: Deployment) -> None:
        """Store a deployment."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._file(deployment.id), _content(deployment))

    def remove(self, deployment_id: str) -> None:
        """Delete a deployment."""
        self._file(deployment_id).unlink(missing_ok=True)

    def read_all(self) -> Iterator[Deployment]:
        """Yield all deployments, oldest first."""
        for path in sorted(self.path.glob(f"[!.]*{_SUFFIX}")):
            try:
                yield _deployment(orjson.loads(path.read_bytes()))
            except (
                OSError,
                ValueError,
                TypeError,
                KeyError,
            ) as error:
                # one damaged file must not prevent the start
                LOG.error(
                    "%s cannot be read and is left alone: %s",
                    path,
                    error,
                    extra={"action": "deployment_unreadable"},
                )

    def _file(self, deployment_id: str) -> Path:
        return self.path / f"{deployment_id}{_SUFFIX}"


def _content(deployment: Deployment) -> bytes:
    try:
        return orjson.dumps(asdict(deployment), option=orjson.OPT_INDENT_2)
    except orjson.JSONEncodeError as error:
        # unserialisable agent reports must not prevent the write
        LOG.error(
            "deployment %s is kept without what its rules said: %s",
            deployment.id,
            error,
            extra={"action": "deployment_rows"},
        )
        return orjson.dumps(asdict(replace(deployment, rows=())), option=orjson.OPT_INDENT_2)


def _deployment(content: dict[str, Any]) -> Deployment:
    known = {
        "artifact": Artifact(**content["artifact"]),
        "previous": _artifact(content["previous"]),
        "stage": Stage(content["stage"]),
        "state": DeploymentState(content["state"]),
        "rules": Rules(**content["rules"]),
        "agent_ids": tuple(content["agent_ids"]),
        "refused": tuple(content.get("refused", ())),
        "base": tuple(content["base"]),
        "steps": tuple(_step(each) for each in content["steps"]),
        "rows": tuple(
            RuleResult(**{**each, "verdict": RuleVerdict(each["verdict"])})
            for each in content["rows"]
        ),
    }
    return Deployment(**{**content, **known})


def _step(content: dict[str, Any]) -> DeploymentStep:
    known = {
        "stage": Stage(content["stage"]),
        "skipped": tuple(Stage(each) for each in content["skipped"]),
        "approvers": tuple(content.get("approvers", ())),
        "orders": tuple(_order(each) for each in content["orders"]),
    }
    return DeploymentStep(**{**content, **known})


def _order(content: dict[str, Any]) -> StepOrder:
    return StepOrder(
        **{
            **content,
            "artifact": _artifact(content["artifact"]),
            "agent_ids": tuple(content["agent_ids"]),
        }
    )


def _artifact(content: dict[str, Any] | None) -> Artifact | None:
    return None if content is None else Artifact(**content)
