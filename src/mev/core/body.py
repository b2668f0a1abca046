"""Base class of request bodies: refuses unknown members and bounds the cost of invalid bodies.

Validation reports an error for each invalid value; thousands of them would block the event loop,
and with it the kill switch.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, model_validator

_MOST_MEMBERS = 64
_T = TypeVar("_T")
Items = Annotated[list[_T], FailFast()]
"""A list that reports its first invalid item only."""


class Body(BaseModel):
    """A request body, or an object inside one: an unknown member is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_members(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > _MOST_MEMBERS:
            raise ValueError(f"{len(data)} members; an object here has at most {_MOST_MEMBERS}")
        return data
