"""Drafts of commands: what is filled in that the request left out."""

import pytest

from mev.control import drafts
from mev.control.fleet import Fleet
from mev.control.model import ModelSwapIn

DIGEST, OTHER = "ab" * 32, "cd" * 32


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        (f"{DIGEST}.mevt", None, DIGEST),
        (f"{DIGEST}.so", None, DIGEST),
        (f"models/{DIGEST}.mevt", None, DIGEST),
        (f"{DIGEST}.mevt", OTHER, OTHER),  # two digests: agents refuse it
        (f"{DIGEST}.ubj", None, ""),
        (f"{DIGEST[1:]}.mevt", None, ""),
        ("champion.mevt", None, ""),
    ],
)
def test_the_digest_of_a_model_is_in_the_name_of_its_file(path: str, given: str | None, expected: str) -> None:
    request = ModelSwapIn(model_id="m", model_path=path, version="1", sha256=given)
    assert drafts.model_swap(request, Fleet()).model.sha256.hex() == expected
