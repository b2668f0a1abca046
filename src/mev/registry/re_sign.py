"""Re-signing of a manifest after key rotation.

A signature of a retired key counts only if the manifest was on this disk before that key was
replaced; a key stolen later cannot produce such a file. Every file must still match its digest, and
every scoring form must reproduce the scores of the golden rows.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from mev.core.confine import Confinement
from mev.crypto.envelope import MAX_SIGNATURES, Signer
from mev.crypto.trust import Retired, TrustStore
from mev.registry.errors import LateManifestError
from mev.scoring import model_files, probe
from mev.scoring.errors import UnsignedManifestError
from mev.scoring.manifest import PAYLOAD_TYPE, Manifest, unseal

_FORMS = ("mevt", "so")


class Notary(Protocol):
    """Provider of the signing key for manifests and of retired key sets."""

    def model_signer(self) -> Signer:
        """Return the active key that signs manifests.

        :raises MevError: when there is none.
        """

    def retired(self) -> Sequence[Retired]:
        """Return the retired key sets, newest first."""


def vouched(data: bytes, changed_ns: int, retired: Sequence[Retired]) -> Manifest:
    """Return the manifest in `data` if a key of the `retired` sets signed it while active.

    `changed_ns` is the time of the file's last change on disk.

    :raises UnsignedManifestError: when no retired key signed it.
    :raises LateManifestError: when the file was written after that key was replaced.
    """
    for each in retired:
        try:
            manifest = unseal(data, TrustStore(each.key_set), each.until_ns)
        except UnsignedManifestError:  # key ids may repeat across key sets
            continue
        if changed_ns > each.until_ns:
            raise LateManifestError(
                f"the manifest of model {manifest.model_id} came to this disk after the key that"
                " signed it was replaced; nobody can tell whether its owner signed it: train the"
                " model again"
            )
        return manifest
    known = "; ".join(f"epoch {each.key_set.epoch}" for each in retired) or "none"
    raise UnsignedManifestError(
        "no key that counted before signed the manifest; key sets of before that are kept here:"
        f" {known}"
    )


def check_files(folder: Path, manifest: Manifest, confinement: Confinement | None) -> None:
    """Check the digests of all files of a model and the scores of each scoring form.

    :raises ModelError: naming what is wrong.
    """
    model_files.read_signed(folder, f"{manifest.model_id}.ubj", manifest.model_id)
    for form in _FORMS:
        if (digest := manifest.digest(form)) is not None:
            check_scores(
                model_files.read_signed(folder, f"{digest}.{form}", digest),
                form,
                manifest,
                confinement,
            )


def check_scores(
    content: bytes, form: str, manifest: Manifest, confinement: Confinement | None
) -> None:
    """Check in a separate process that a form reproduces the scores of the golden rows.

    :raises ModelError: naming what is wrong.
    """
    scores = probe.probe(
        content, form, manifest.golden_rows, model_id=manifest.model_id, confinement=confinement
    )
    probe.difference(manifest.golden_scores, scores)


def signed_again(data: bytes, key: Signer) -> bytes:
    """Return the manifest file with a signature of `key` added; earlier signatures stay."""
    outer: dict[str, Any] = orjson.loads(data)
    signature = key.sign(PAYLOAD_TYPE, base64.b64decode(outer["payload"], validate=True))
    others = [each for each in outer["signatures"] if each["keyid"] != signature.key_id][
        -(MAX_SIGNATURES - 1) :
    ]
    outer["signatures"] = [
        *others,
        {"keyid": signature.key_id, "sig": base64.b64encode(signature.sig).decode()},
    ]
    return orjson.dumps(outer, option=orjson.OPT_INDENT_2)
