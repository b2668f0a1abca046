"""HTTP client of the control plane: enrolment, the state to start from, and model files."""

import json
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from mev.agent.command_verifier import Identity
from mev.agent.policy import PolicyType
from mev.agent.strategy import AGENT_CONFIGS, Param, Strategy
from mev.bus.kafka import Brokers
from mev.core.errors import MevError, UnavailableError
from mev.crypto import possession
from mev.crypto.keys import SigningKey
from mev.scoring.errors import ModelMissingError, UnsafeModelFileError
from mev.wire.orders import threshold_directions

_PATH = "/api/control"
_DOWNLOAD_S = 60.0


class EnrolmentRefusedError(MevError):
    """The control plane refuses this agent."""

    code = "enrolment_refused"
    status = 403


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Addresses and credential of a control plane."""

    api: str
    api_key: str
    brokers: Brokers


Locate = Callable[[], Site]


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Initial state: keys, active commands, and the offset to read the control topic from."""

    key_set: bytes
    snapshot: bytes
    control_offset: int
    lease_ttl_s: float
    report_interval_s: float


class ControlPlane:
    """HTTP client of the control plane at `site`; methods raise one of this module's two errors."""

    def __init__(self, site: Site, *, timeout_s: float) -> None:
        self._site = site
        self._timeout_s = timeout_s

    async def enrol(
        self, identity: Identity, strategy: Strategy, key: SigningKey, software_version: str
    ) -> Welcome:
        """Enrol this agent, signed with `key`; the request is idempotent.

        :raises EnrolmentRefusedError: when it is refused, for example since the id has another key.
        """
        return await self._ask(
            "POST",
            "/agents",
            {
                "agent_id": identity.agent_id,
                "module": identity.module,
                "public_key": key.public_key.hex(),
                "software_version": software_version,
                "actions": [action.declaration() for action in strategy.actions],
                "policy_types": [policy_type.name for policy_type in strategy.policy_types],
                "policies": [_policy_type(policy_type) for policy_type in strategy.policy_types],
                "configs": [
                    _config(name, param)
                    for name, param in {**strategy.configs, **AGENT_CONFIGS}.items()
                ],
            },
            key,
        )

    async def snapshot(self) -> Welcome:
        """Return the state to start from."""
        return await self._ask("GET", "/snapshot")

    async def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, object] | None = None,
        key: SigningKey | None = None,
    ) -> Welcome:
        url = self._site.api.rstrip("/") + _PATH + path
        content = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        if key is not None and content is not None:
            headers[possession.HEADER] = possession.prove(key, content)
        try:
            async with httpx.AsyncClient(
                timeout=self._timeout_s,
                headers={"X-API-Key": self._site.api_key},
                verify=not url.startswith("http:"),  # reading all certificates takes long
            ) as client:
                answer = await client.request(method, url, content=content, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(
                f"{url} does not answer: {error!r}", code="control_plane_unavailable"
            ) from None
        if answer.is_client_error and answer.status_code not in {408, 429}:
            raise EnrolmentRefusedError(f"{url}: {_reason(answer)}")
        if not answer.is_success:
            raise UnavailableError(f"{url}: {_reason(answer)}", code="control_plane_unavailable")
        try:
            return _welcome(answer.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnavailableError(
                f"{url}: not an answer of a control plane: {error!r}",
                code="control_plane_unavailable",
            ) from None


def _policy_type(policy_type: PolicyType) -> dict[str, object]:
    thresholds = [
        {"name": name, "tighter": tighter} for name, tighter in threshold_directions().items()
    ]
    return {"type": policy_type.name, "thresholds": thresholds, "required": policy_type.required}


def _config(name: str, param: Param) -> dict[str, object]:
    return {"name": name, "tighter": param.tighter, "initial": param.initial}


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


def fetch_from(locate: Locate, *, timeout_s: float = 10.0) -> Callable[[str, str, int], bytes]:
    """Return a function that downloads model files from the control plane.

    `locate` is called for every file.
    """

    def fetch(model_id: str, name: str, most: int) -> bytes:
        try:
            site = locate()
        except MevError as error:
            raise ModelMissingError(
                f"{name} is not here, and there is no control plane to ask: {error.detail}"
            ) from None
        return _get(site, f"/api/training/models/{model_id}/files/{name}", most, timeout_s)

    return fetch


def _get(site: Site, path: str, most: int, timeout_s: float) -> bytes:
    url, content, deadline = (
        site.api.rstrip("/") + path,
        bytearray(),
        time.monotonic() + _DOWNLOAD_S,
    )
    try:
        with httpx.stream(
            "GET",
            url,
            timeout=timeout_s,
            headers={"X-API-Key": site.api_key, "Accept-Encoding": "identity"},
        ) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ModelMissingError(f"{url}: {answer.status_code} {answer.reason_phrase}")
            for part in answer.iter_bytes():
                content += part
                if len(content) > most:
                    raise UnsafeModelFileError(f"{url} has more than {most} bytes")
                if time.monotonic() > deadline:
                    raise ModelMissingError(f"{url} did not come within {_DOWNLOAD_S:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ModelMissingError(f"{url} does not answer: {error!r}") from None
    return bytes(content)
