"""Registry of event types and what is derived from each: topic, key, table, schemas.

The descriptors in ``protocol/`` are the single source of truth. To add a type, write its message
with the ``event`` option and add its class to :data:`EVENT_TYPES`.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from mev.core.errors import NotFoundError
from mev.wire.pb import events_pb2, options_pb2

_SCALARS: dict[int, tuple[str, str]] = {
    FieldDescriptor.TYPE_DOUBLE: ("double", "Float64"),
    FieldDescriptor.TYPE_FLOAT: ("float", "Float32"),
    FieldDescriptor.TYPE_UINT64: ("uint64", "UInt64"),
    FieldDescriptor.TYPE_UINT32: ("uint32", "UInt32"),
    FieldDescriptor.TYPE_SINT64: ("sint64", "Int64"),
    FieldDescriptor.TYPE_SINT32: ("sint32", "Int32"),
    FieldDescriptor.TYPE_BOOL: ("bool", "Bool"),
    FieldDescriptor.TYPE_STRING: ("string", "String"),
}


class KafkaRecord(TypedDict):
    """One Kafka message to publish."""

    key: bytes
    value: bytes


class UnknownEventTypeError(NotFoundError):
    """The event type does not exist."""

    code = "unknown_event_type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of an event, as declared in its ``.proto`` file."""

    name: str
    number: int
    type: str
    clickhouse_type: str
    repeated: bool
    unit: str
    description: str
    required: bool
    time: bool
    """True if the field is a point in time."""


@dataclass(frozen=True)
class EventType:
    """An event type: `message` is its Protobuf class; the rest is read from the descriptor."""

    message: type[Message]

    @cached_property
    def descriptor(self) -> Descriptor:
        """The message's descriptor."""
        return cast("Descriptor", self.message.DESCRIPTOR)

    @cached_property
    def _options(self) -> options_pb2.EventOptions:
        return cast("options_pb2.EventOptions", _option(self.descriptor, options_pb2.event))

    @cached_property
    def name(self) -> str:
        """Name in URLs, for example ``arbitrage``."""
        return self._options.name

    @cached_property
    def description(self) -> str:
        """Description in one sentence."""
        return self._options.description

    @cached_property
    def ours(self) -> bool:
        """True if only the control plane publishes it."""
        return self._options.ours

    @cached_property
    def topic(self) -> str:
        """Kafka topic, for example ``mev.arbitrage.v1``."""
        return f"mev.{self.name}.v1"

    @property
    def table(self) -> str:
        """ClickHouse table, without its database."""
        return self.name

    @cached_property
    def order_by(self) -> tuple[str, ...]:
        """Fields that identify an event and order its table; the first one is its time."""
        return tuple(self._options.order_by)

    @cached_property
    def key(self) -> str:
        """Field used as the Kafka message key."""
        (name,) = (
            field.name for field in self.descriptor.fields if _option(field, options_pb2.key)
        )
        return name

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Fields that an event must have."""
        return tuple(field.name for field in self.fields if field.required)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """All fields, in declaration order."""
        return tuple(map(_field, self.descriptor.fields))

    @cached_property
    def clickhouse_types(self) -> dict[str, str]:
        """ClickHouse type of each field by name."""
        return {field.name: field.clickhouse_type for field in self.fields}

    def record(self, message: Message) -> KafkaRecord:
        """Encode `message` as the Kafka message that carries it."""
        return {"key": getattr(message, self.key).encode(), "value": message.SerializeToString()}

    @cached_property
    def proto_schema(self) -> str:
        """The message as self-contained ``.proto`` text for ClickHouse's Protobuf format.

        Options and imports are omitted.
        """
        nested = {
            inner.name: inner
            for f in self.descriptor.fields
            if (inner := _message(f)) and not _is_map(f)
        }
        return "\n".join(
            [
                'syntax = "proto3";',
                *map(_proto_text, nested.values()),
                _proto_text(self.descriptor),
                "",
            ]
        )

    @cached_property
    def located_schema(self) -> str:
        """:attr:`proto_schema` of records that also say where in Kafka they were."""
        head, _, _ = self.proto_schema.rpartition("}")
        places = [
            f"  {column.proto_type} {name} = {column.number};\n"
            for name, column in PLACE_COLUMNS.items()
        ]
        return "".join([head, *places, "}\n"])

    @cached_property
    def schema_hash(self) -> str:
        """SHA-256 of :attr:`proto_schema`, in hexadecimal; changes only if the encoding changes."""
        return hashlib.sha256(self.proto_schema.encode()).hexdigest()

    def create_table_sql(self, database: str) -> str:
        """Return the DDL of the table.

        A repeated event replaces the stored one; units and descriptions are column comments.
        """
        columns = [f"    {_column(f)}" for f in self.fields]
        columns += [f"    {column.sql(name)}" for name, column in PLACE_COLUMNS.items()]
        columns.append(
            "    `_stored_at` DateTime64(3, 'UTC') DEFAULT now64(3) "
            "COMMENT 'When the row was inserted.'"
        )
        body = ",\n".join(columns)
        return (
            f"CREATE TABLE IF NOT EXISTS `{database}`.`{self.table}` (\n{body}\n)\n"
            f"ENGINE = ReplacingMergeTree ORDER BY ({', '.join(self.order_by)})\n"
            f"SETTINGS non_replicated_deduplication_window = 1000\n"
            f"COMMENT {_sql_string(self.description)}"
        )

    def add_columns_sql(self, database: str) -> str:
        """Return the DDL that adds missing columns to a table created by an earlier release."""
        names = [field.name for field in self.fields]
        places = ["FIRST", *(f"AFTER `{name}`" for name in names)]
        columns = [
            f"    ADD COLUMN IF NOT EXISTS {_column(f)} {place}"
            for f, place in zip(self.fields, places, strict=False)
        ]
        after = names[-1]
        for name, column in PLACE_COLUMNS.items():
            columns.append(f"    ADD COLUMN IF NOT EXISTS {column.sql(name)} AFTER `{after}`")
            after = name
        return f"ALTER TABLE `{database}`.`{self.table}`\n" + ",\n".join(columns)

    def json_schema(self) -> dict[str, object]:
        """Return the JSON Schema (draft 2020-12) of one event in an ingest request."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.name,
            "description": self.description,
            **_json_object(self.descriptor),
            "required": list(self.required),
        }

    def dataset_schema(self) -> dict[str, object]:
        """Return the response of ``GET /api/datasets/schema/{type}``."""
        return {
            "type": self.name,
            "description": self.description,
            "topic": self.topic,
            "table": self.table,
            "key": self.key,
            "order_by": list(self.order_by),
            "schema_hash": self.schema_hash,
            "fields": [
                {name: getattr(field, name) for name in Field.__dataclass_fields__}
                for field in self.fields
            ],
            "json_schema": self.json_schema(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceColumn:
    """Column of every event table with a part of the record's position in Kafka, and its field."""

    number: int
    """Of the field in :attr:`EventType.located_schema`, above those of all events."""
    proto_type: str
    clickhouse_type: str
    default: int
    comment: str

    def sql(self, name: str) -> str:
        """Return the DDL of the column called `name`."""
        return (
            f"`{name}` {self.clickhouse_type} DEFAULT {self.default}"
            f" COMMENT {_sql_string(self.comment)}"
        )


PLACE_COLUMNS = {
    "_kafka_log": PlaceColumn(
        number=2001,
        proto_type="fixed64",
        clickhouse_type="UInt64",
        default=0,
        comment=(
            "Number of the log that the offset is of, as resume tokens have it;"
            " 0 when it is not known."
        ),
    ),
    "_kafka_partition": PlaceColumn(
        number=2002,
        proto_type="int32",
        clickhouse_type="Int32",
        default=-1,
        comment="Partition; -1 when it is not known.",
    ),
    "_kafka_offset": PlaceColumn(
        number=2003,
        proto_type="sfixed64",
        clickhouse_type="Int64",
        default=-1,
        comment="Offset; -1 when it is not known.",
    ),
}
"""Columns beside the fields, in the order in which the sink writes them before each record."""


def event_type(name: str) -> EventType:
    """Return the event type `name`.

    :raises UnknownEventTypeError: if it does not exist.
    """
    try:
        return EVENT_TYPES[name]
    except KeyError:
        raise UnknownEventTypeError(
            f"no event type {name!r}; there are {', '.join(EVENT_TYPES)}", known=list(EVENT_TYPES)
        ) from None


def _option(described: Descriptor | FieldDescriptor, extension: Any) -> Any:
    return described.GetOptions().Extensions[extension]


def _message(field: FieldDescriptor) -> Descriptor | None:
    return field.message_type


def _is_map(field: FieldDescriptor) -> bool:
    message = _message(field)
    return message is not None and message.GetOptions().map_entry


def _map_entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    key, value = cast("Descriptor", field.message_type).fields
    return key, value


def _field(field: FieldDescriptor) -> Field:
    return Field(
        name=field.name,
        number=field.number,
        type=_proto_type(field),
        clickhouse_type=_clickhouse_type(field),
        repeated=bool(field.is_repeated),
        unit=_option(field, options_pb2.unit),
        description=_option(field, options_pb2.description),
        required=_option(field, options_pb2.required),
        time=_option(field, options_pb2.time),
    )


def _proto_type(field: FieldDescriptor) -> str:
    if _is_map(field):
        key, value = _map_entry(field)
        return f"map<{_proto_type(key)}, {_proto_type(value)}>"
    if message := _message(field):
        return message.name
    return _SCALARS[field.type][0]


def _clickhouse_type(field: FieldDescriptor) -> str:
    if _is_map(field):
        key, value = _map_entry(field)
        return f"Map({_clickhouse_type(key)}, {_clickhouse_type(value)})"
    if message := _message(field):
        inner = f"Tuple({', '.join(f'{f.name} {_clickhouse_type(f)}' for f in message.fields)})"
    else:
        inner = _SCALARS[field.type][1]
    return f"Array({inner})" if field.is_repeated else inner


def _proto_text(descriptor: Descriptor) -> str:
    lines = [
        f"  {'repeated ' if field.is_repeated and not _is_map(field) else ''}"
        f"{_proto_type(field)} {field.name} = {field.number};"
        for field in descriptor.fields
    ]
    return "\n".join([f"message {descriptor.name} {{", *lines, "}"])


def _column(field: Field) -> str:
    return f"`{field.name}` {field.clickhouse_type} COMMENT {_sql_string(_comment(field))}"


def _comment(field: Field) -> str:
    return f"{field.description} [{field.unit}]" if field.unit else field.description


def _sql_string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_INTEGER_BOUNDS: dict[int, tuple[int, int]] = {
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
}
_JSON_TYPES: dict[int, str] = {
    FieldDescriptor.TYPE_DOUBLE: "number",
    FieldDescriptor.TYPE_FLOAT: "number",
    FieldDescriptor.TYPE_BOOL: "boolean",
    FieldDescriptor.TYPE_STRING: "string",
}


def _json_object(descriptor: Descriptor) -> dict[str, object]:
    properties = {field.name: _json_field(field) for field in descriptor.fields}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _json_field(field: FieldDescriptor) -> dict[str, object]:
    notes = {name: _option(field, getattr(options_pb2, name)) for name in ("description", "unit")}
    return {**_json_type(field), **{name: note for name, note in notes.items() if note}}


def _json_type(field: FieldDescriptor) -> dict[str, object]:
    if _is_map(field):
        return {"type": "object", "additionalProperties": _json_type(_map_entry(field)[1])}
    inner = _json_object(message) if (message := _message(field)) else _json_scalar(field)
    return {"type": "array", "items": inner} if field.is_repeated else inner


def _json_scalar(field: FieldDescriptor) -> dict[str, object]:
    if field.type in _INTEGER_BOUNDS:
        minimum, maximum = _INTEGER_BOUNDS[field.type]
        return {"type": "integer", "minimum": minimum, "maximum": maximum}
    return {"type": _JSON_TYPES[field.type]}


EVENT_TYPES: dict[str, EventType] = {
    event.name: event
    for event in map(
        EventType,
        (
            events_pb2.Arbitrage,
            events_pb2.Sandwich,
            events_pb2.Liquidation,
            events_pb2.Opportunity,
            events_pb2.Bundle,
            events_pb2.Tick,
            events_pb2.AgentMetrics,
            events_pb2.Score,
            events_pb2.Job,
        ),
    )
}

BY_TOPIC: dict[str, EventType] = {event.topic: event for event in EVENT_TYPES.values()}
