from collections.abc import Iterator, Sequence
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from mev.wire.registry import KafkaRecord

INTERFACE: int
_Tables = Sequence[Sequence[tuple[str, str, int, str, str, int]]]
_Condition = tuple[Sequence[str], str | None, str, Sequence[bool | int | float | str]]

class MalformedError(ValueError): ...

def are_complete_records(data: bytes, start: int, count: int) -> bool: ...

@final
class BodyConverter:
    def __new__(
        cls,
        tables: _Tables,
        *,
        key: str,
        required: Sequence[str],
        times: Sequence[str],
        max_record_bytes: int,
        earliest_ns: int,
    ) -> BodyConverter: ...
    def pieces(
        self, body: bytes, form: Literal["json", "lines", "delimited"], latest_ns: int
    ) -> Iterator[tuple[list[KafkaRecord], list[tuple[int, bytes]], bool]]: ...

@final
class TreeModel:
    def __new__(cls, data: bytes) -> TreeModel: ...
    @property
    def shape(self) -> tuple[int, int, int, int]: ...
    def predict(
        self, rows: NDArray[np.float32], scores: NDArray[np.float32], margin: bool
    ) -> None: ...

@final
class EventTables:
    def __new__(cls, tables: _Tables) -> EventTables: ...

@final
class EventFilter:
    def __new__(cls, tables: EventTables, conditions: Sequence[_Condition]) -> EventFilter: ...

@final
class EventBlock:
    def __new__(cls, tables: EventTables, events: Sequence[bytes]) -> EventBlock: ...
    def select(self, conditions: EventFilter) -> list[int] | None: ...
