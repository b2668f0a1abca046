"""Scalar types of fields, the literals that each accepts, and a single condition of a filter."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import orjson
from google.protobuf.descriptor import FieldDescriptor

from mev.wire.explain import json_name
from mev.wire.filters.errors import BadFilterError, shorten

Value = bool | int | float | str
_NUMBER = frozenset({int, float})
_FLOAT_MAX = 3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class Scalar:
    """A Protobuf scalar type; `literal` describes in words the values it accepts."""

    name: str
    literal: str
    accepts: frozenset[type]
    low: float | None = None
    high: float | None = None

    @property
    def floating(self) -> bool:
        """True if values are floating-point numbers."""
        return float in self.accepts

    @property
    def ordered(self) -> bool:
        """True if values have an order."""
        return bool not in self.accepts

    def check(self, values: Sequence[object], field: str) -> None:
        """Check that all `values`, at least one, are of this type and in its range.

        :raises BadFilterError: naming the first that is not.
        """
        if not self.accepts.issuperset(map(type, values)):
            wrong = next(
                place for place, value in enumerate(values) if type(value) not in self.accepts
            )
        elif self.low is not None and self.high is not None and not all(map(self._holds, values)):
            wrong = next(place for place, value in enumerate(values) if not self._holds(value))
        else:
            return
        place = f"value {wrong + 1} of the list" if len(values) > 1 else "the value"
        detail = (
            f"{field} is of type {self.name}; "
            f"{place} is {_shown(values[wrong])}, not {self.literal}"
        )
        raise BadFilterError(detail, path=field, field_type=self.name)

    def stored(self, value: Value) -> Value:
        """Return `value` as an event stores it: a float is rounded to 32 bits."""
        return struct.unpack("<f", struct.pack("<f", value))[0] if self is FLOAT else value

    def _holds(self, value: object) -> bool:
        return self.low <= value <= self.high  # type: ignore[operator]


def _shown(value: object) -> str:
    return (
        json_name(value)
        if isinstance(value, list | dict)
        else shorten(orjson.dumps(value).decode())
    )


def _integer(name: str, low: int, high: int) -> Scalar:
    return Scalar(name, f"an integer from {low} to {high}", frozenset({int}), low, high)


FLOAT = Scalar("float", "a number of up to 3.4e38", _NUMBER, -_FLOAT_MAX, _FLOAT_MAX)
SCALARS: dict[int, Scalar] = {
    FieldDescriptor.TYPE_DOUBLE: Scalar("double", "a number", _NUMBER),
    FieldDescriptor.TYPE_FLOAT: FLOAT,
    FieldDescriptor.TYPE_UINT64: _integer("uint64", 0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: _integer("uint32", 0, 2**32 - 1),
    FieldDescriptor.TYPE_SINT64: _integer("sint64", -(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT32: _integer("sint32", -(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_BOOL: Scalar("bool", "true or false", frozenset({bool})),
    FieldDescriptor.TYPE_STRING: Scalar("string", "a string in double quotes", frozenset({str})),
}


class Op(StrEnum):
    """Comparison operator of a condition."""

    EQ = "=="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    IN = "in"
    NOT_IN = "not in"

    @property
    def ordering(self) -> bool:
        """True if the operator needs ordered values."""
        return self in (Op.LT, Op.LE, Op.GT, Op.GE)

    @property
    def takes_list(self) -> bool:
        """True if the literal is a list."""
        return self in (Op.IN, Op.NOT_IN)


@dataclass(frozen=True, slots=True)
class Condition:
    """Comparison of `field` with `value`; its text form is canonical.

    For ``in`` and ``not in``, `value` is a sorted tuple of distinct values.
    """

    field: str
    op: Op
    value: Value | tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.field} {self.op} {orjson.dumps(self.value).decode()}"
