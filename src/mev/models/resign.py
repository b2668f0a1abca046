"""Signing a manifest again after its key was replaced: never on anybody's word but the retired key's own.

A signature of a retired key counts when the manifest lay on this disk before that key was replaced: whoever stole the key later can
sign, but cannot have signed then. Every file must still have its digest, and every form that scores the golden rows' scores.
"""

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from mev.crypto.envelope import MAX_SIGNATURES, Signer
from mev.crypto.retired import Retired
from mev.crypto.trust import TrustStore
from mev.models.errors import LateManifestError
from mev.predict import probe, vault
from mev.predict.errors import UnsignedManifestError
from mev.predict.manifest import PAYLOAD_TYPE, Manifest, unseal

_FORMS = ("mevt", "so")


class Notary(Protocol):
    """Who signs manifests here, and whose signatures counted before."""

    def signer(self) -> Signer:
        """Return the key in force.

        :raises MevError: when there is none.
        """

    def retired(self) -> Sequence[Retired]:
        """Return the key sets that were in force, the newest first."""


def vouched(data: bytes, changed_ns: int, retired: Sequence[Retired]) -> Manifest:
    """Return the manifest in `data`, last changed on the disk at `changed_ns`, that a key of the `retired` sets signed in its time.

    :raises UnsignedManifestError: when none did.
    :raises LateManifestError: when the file came after that key was replaced.
    """
    for each in retired:
        try:
            manifest = unseal(data, TrustStore(each.key_set), each.until_ns)
        except UnsignedManifestError:  # two key sets may give two keys one name: a signature that does not fit one may fit the other
            continue
        if changed_ns > each.until_ns:
            raise LateManifestError(
                f"the manifest of model {manifest.model_id} came to this disk after the key that signed it was replaced; "
                "nobody can tell whether its owner signed it: train the model again"
            )
        return manifest
    known = "; ".join(f"epoch {each.key_set.epoch}" for each in retired) or "none"
    raise UnsignedManifestError(f"no key that counted before signed the manifest; key sets of before that are kept here: {known}")


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check the digests of all files of a model, and in a process of its own the scores of each form that scores.

    :raises ModelError: naming what is wrong.
    """
    vault.read_signed(folder, f"{manifest.model_id}.ubj", manifest.model_id)
    for form in _FORMS:
        if (digest := manifest.digest(form)) is not None:
            content = vault.read_signed(folder, f"{digest}.{form}", digest)
            with tempfile.TemporaryDirectory(prefix="mev-sign-") as own:
                copy = Path(own, f"{digest}.{form}")
                copy.write_bytes(content)
                probe.difference(manifest.golden_scores, probe.probe(copy, manifest.golden_rows, model_id=manifest.model_id))


def signed_again(data: bytes, key: Signer) -> bytes:
    """Return the file of a manifest with a signature of `key` over the bytes that were signed before; who signed them stays in it."""
    outer: dict[str, Any] = orjson.loads(data)
    signature = key.sign(PAYLOAD_TYPE, base64.b64decode(outer["payload"], validate=True))
    others = [each for each in outer["signatures"] if each["keyid"] != signature.key_id][-(MAX_SIGNATURES - 1) :]
    outer["signatures"] = [*others, {"keyid": signature.key_id, "sig": base64.b64encode(signature.sig).decode()}]
    return orjson.dumps(outer, option=orjson.OPT_INDENT_2)
