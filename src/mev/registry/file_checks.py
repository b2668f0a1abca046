"""Checks of a model's files before they are registered."""

import hashlib
from collections.abc import Mapping

from mev.registry.errors import ModelTooLargeError
from mev.scoring import manifest as manifests
from mev.scoring import model_files
from mev.scoring.errors import BadModelDigestError
from mev.scoring.manifest import Manifest


def check_files(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Check digests and sizes of `files`, by form.

    :raises BadModelDigestError, ModelTooLargeError: naming the form.
    """
    for form, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest.digest(form):
            raise BadModelDigestError(f"the {form} file is not the one that the manifest names")
        check_size(form, len(content))


def check_size(form: str, size: int) -> None:
    """Check that a file is not larger than agents accept.

    :raises ModelTooLargeError: when it is.
    """
    most = manifests.MAX_BYTES if form == "manifest" else model_files.MAX_BYTES
    if size > most:
        raise ModelTooLargeError(
            f"the {form} file has {size} bytes, and agents take {most}: train fewer or smaller"
            " trees (rounds, max_depth)",
            form=form,
            bytes=size,
        )
