"""Asking the control plane over HTTP: enrolment, and the state to begin from after an absence."""

from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from mev.agent.judge import Identity
from mev.agent.strategy import Strategy
from mev.bus.kafka import Brokers
from mev.core.errors import MevError, UnavailableError

_PATH = "/api/control"


class ControlPlaneError(UnavailableError):
    """The control plane does not answer, or not sensibly."""

    code = "control_plane_unavailable"


class EnrolmentRefusedError(MevError):
    """The control plane does not take this agent."""

    code = "enrolment_refused"
    status = 403


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a control plane is."""

    api: str
    api_key: str
    brokers: Brokers


Locate = Callable[[], Site]


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Where to begin: the keys, the commands in force, and the offset of the control topic to read from."""

    key_set: bytes
    snapshot: bytes
    control_offset: int
    lease_ttl_s: float
    report_interval_s: float


class ControlPlane:
    """The HTTP side of the control plane at `site`. Every method raises one of two errors of this module."""

    def __init__(self, site: Site, *, timeout_s: float) -> None:
        self._site = site
        self._timeout_s = timeout_s

    async def enrol(self, identity: Identity, strategy: Strategy, public_key: bytes, software_version: str) -> Welcome:
        """Tell the control plane of this agent; it may be told again and again.

        :raises EnrolmentRefusedError: when it does not want it, above all when the id belongs to another key.
        """
        return await self._ask(
            "POST",
            "/agents",
            {
                "agent_id": identity.agent_id,
                "module": identity.module,
                "public_key": public_key.hex(),
                "software_version": software_version,
                "actions": [action.declaration() for action in strategy.actions],
                "policy_types": [policy_type.name for policy_type in strategy.policy_types],
            },
        )

    async def snapshot(self) -> Welcome:
        """Return where to begin again."""
        return await self._ask("GET", "/snapshot")

    async def _ask(self, method: str, path: str, body: dict[str, object] | None = None) -> Welcome:
        url = self._site.api.rstrip("/") + _PATH + path
        try:
            async with httpx.AsyncClient(timeout=self._timeout_s, headers={"X-API-Key": self._site.api_key}) as client:
                answer = await client.request(method, url, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ControlPlaneError(f"{url} does not answer: {error!r}") from None
        if answer.is_client_error and answer.status_code not in {408, 429}:
            raise EnrolmentRefusedError(f"{url}: {_reason(answer)}")
        if not answer.is_success:
            raise ControlPlaneError(f"{url}: {_reason(answer)}")
        try:
            return _welcome(answer.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ControlPlaneError(f"{url}: not an answer of a control plane: {error!r}") from None


def _welcome(document: dict[str, Any]) -> Welcome:
    return Welcome(
        key_set=b64decode(document["key_set"], validate=True),
        snapshot=b64decode(document["snapshot"], validate=True),
        control_offset=int(document["control_offset"]),
        lease_ttl_s=float(document.get("lease_ttl_s", 10.0)),
        report_interval_s=float(document.get("report_interval_s", 2.0)),
    )


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}"
