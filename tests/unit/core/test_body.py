"""Bodies are bounded before they are parsed, and bad ones cost no more than good ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mev.core.body import Body, Items
from mev.core.coding import BodyTooLargeError, check_values

LIMIT = 50
TEXT = st.text(st.sampled_from('",[{\\ab'), max_size=6)
LEAF: st.SearchStrategy[object] = st.one_of(st.none(), st.integers(), TEXT, st.just([]))
JSON = st.one_of(LEAF, st.lists(LEAF, max_size=70), st.dictionaries(TEXT, LEAF, max_size=70))


class Several(Body):
    """A body with a list."""

    names: Items[int]


def marks(value: object) -> int:
    """Return the commas, brackets and braces of a JSON document outside strings."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(0, len(value) - 1) + sum(map(marks, inner))
    return 0


@given(JSON)
def test_body_is_refused_exactly_when_it_has_more_values_than_allowed(value: object) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    if marks(value) > LIMIT:
        with pytest.raises(BodyTooLargeError):
            check_values(body, LIMIT)
    elif body.count(b'"') <= 8 * LIMIT:
        check_values(body, LIMIT)


def test_text_full_of_commas_is_one_value() -> None:
    check_values(json.dumps({"reason": ",[{" * 10_000}).encode(), LIMIT)


def test_list_of_bad_items_and_object_of_unknown_members_are_one_error() -> None:
    for body in ({"names": ["x"] * 5000}, {f"member_{number}": 1 for number in range(5000)}):
        with pytest.raises(ValidationError) as caught:
            Several.model_validate(body)
        assert caught.value.error_count() == 1
