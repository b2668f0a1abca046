"""Files of models that this machine does not have, from the control plane. What comes is checked by whoever asked."""

import time
from collections.abc import Callable

import httpx

from mev.agent.enrolment import Locate, Site
from mev.core.errors import MevError
from mev.predict.errors import ModelMissingError, UnsafeModelFileError

_TOTAL_S = 60.0


def fetch_from(locate: Locate, *, timeout_s: float = 10.0) -> Callable[[str, str, int], bytes]:
    """Return what gets files of models from the control plane that `locate` finds, asked anew for every file."""

    def fetch(model_id: str, name: str, most: int) -> bytes:
        try:
            site = locate()
        except MevError as error:
            raise ModelMissingError(f"{name} is not here, and there is no control plane to ask: {error.detail}") from None
        return _get(site, f"/api/training/models/{model_id}/files/{name}", most, timeout_s)

    return fetch


def _get(site: Site, path: str, most: int, timeout_s: float) -> bytes:
    url, content, deadline = site.api.rstrip("/") + path, bytearray(), time.monotonic() + _TOTAL_S
    try:
        with httpx.stream("GET", url, timeout=timeout_s, headers={"X-API-Key": site.api_key, "Accept-Encoding": "identity"}) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ModelMissingError(f"{url}: {answer.status_code} {answer.reason_phrase}")
            for part in answer.iter_bytes():
                content += part
                if len(content) > most:
                    raise UnsafeModelFileError(f"{url} has more than {most} bytes")
                if time.monotonic() > deadline:
                    raise ModelMissingError(f"{url} did not come within {_TOTAL_S:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ModelMissingError(f"{url} does not answer: {error!r}") from None
    return bytes(content)
