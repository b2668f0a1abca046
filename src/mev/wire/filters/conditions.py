"""One condition as plain values."""

from dataclasses import dataclass
from enum import StrEnum

import orjson

from mev.wire.filters.scalars import Value


class Op(StrEnum):
    """How a field is compared with a literal."""

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
        """Whether values must have an order."""
        return self in (Op.LT, Op.LE, Op.GT, Op.GE)

    @property
    def takes_list(self) -> bool:
        """Whether the literal is a list."""
        return self in (Op.IN, Op.NOT_IN)


@dataclass(frozen=True, slots=True)
class Condition:
    """`field` compared with `value`: for ``in`` and ``not in`` the distinct values in order, else one; as text it is canonical."""

    field: str
    op: Op
    value: Value | tuple[Value, ...]

    def __str__(self) -> str:
        return f"{self.field} {self.op} {orjson.dumps(self.value).decode()}"
