import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import Message

from mev.sink.block import join
from mev.sink.writer import Writer
from mev.store.clickhouse import Address, ClickHouse, UnreadableBlockError
from mev.wire.pb import options_pb2
from mev.wire.registry import (
    BY_TOPIC,
    EVENT_TYPES,
    PLACE_COLUMNS,
    EventType,
    UnknownEventTypeError,
    event_type,
)
from tests.unit.wire.messages import full_message

EVENTS = pytest.mark.parametrize("event", EVENT_TYPES.values(), ids=EVENT_TYPES)


@pytest.fixture(scope="module")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """Give the embedded engine with the table of every event."""
    folder = tmp_path_factory.mktemp("clickhouse")
    with contextlib.chdir(
        folder
    ):  # the engine keeps the schemas it was given in the working directory
        store = ClickHouse(Address(database="mev", path=folder / "data"))
        store.command("CREATE DATABASE mev")
        for event in EVENT_TYPES.values():
            store.command(event.create_table_sql("mev"))
        yield store
        store.close()


def insert(store: ClickHouse, event: EventType, *values: bytes) -> None:
    store.insert_protobuf(
        event.table,
        list(event.clickhouse_types),
        join(values),
        schema=event.proto_schema,
        message=event.descriptor.name,
        token="",
    )


@EVENTS
def test_an_event_type_has_one_key_a_text_that_is_required(event: EventType) -> None:
    key: Any = options_pb2.key
    keys = [field.name for field in event.descriptor.fields if field.GetOptions().Extensions[key]]
    assert keys == [event.key]
    assert event.key in event.required
    assert event.clickhouse_types[event.key] == "String"


@EVENTS
def test_what_orders_a_table_exists_and_identifies_the_event(event: EventType) -> None:
    assert set(event.order_by) <= set(event.clickhouse_types)
    assert len(set(event.order_by)) == len(event.order_by) >= 2
    assert event.key in event.order_by
    assert event.order_by[0] == "slot" or event.order_by[0].endswith("_ns")


@EVENTS
def test_everything_is_described(event: EventType) -> None:
    assert event.description.endswith(".")
    undescribed = [
        field.name
        for field in event.fields
        if not field.description.endswith(".") and not field.description[-1:].isalnum()
    ]
    assert not undescribed


@EVENTS
def test_units_are_those_of_the_names(event: EventType) -> None:
    units = {field.name: field.unit for field in event.fields}
    for suffix in ("lamports", "ns"):
        assert {units[name] for name in units if name.endswith(f"_{suffix}")} <= {suffix}
    assert {units[name] for name in units if name.endswith("_amount")} <= {"base units"}


@EVENTS
def test_names_follow_from_the_type(event: EventType) -> None:
    assert event_type(event.name) is event
    assert event.topic == f"mev.{event.name}.v1"
    assert BY_TOPIC[event.topic] is event
    assert event.table == event.name


def test_an_unknown_event_type_is_named_with_those_there_are() -> None:
    with pytest.raises(
        UnknownEventTypeError, match="no event type 'tock'; there are arbitrage, sandwich,"
    ) as caught:
        event_type("tock")
    assert caught.value.problem()["known"] == list(EVENT_TYPES)
    assert caught.value.status == 404


@EVENTS
def test_the_engine_makes_the_table_with_its_comments(
    event: EventType, clickhouse: ClickHouse
) -> None:
    clickhouse.command(event.create_table_sql("mev"))
    columns = clickhouse.rows(
        "SELECT name, type, comment FROM system.columns WHERE database = 'mev' AND table ="
        " {table:String} ORDER BY position",
        {"table": event.table},
    )
    expected = [
        (f.name, f.clickhouse_type, f"{f.description} [{f.unit}]" if f.unit else f.description)
        for f in event.fields
    ]
    found = [(name, kind.replace(", ", ","), comment) for name, kind, comment in columns]
    assert found[: len(expected)] == [
        (name, kind.replace(", ", ","), comment) for name, kind, comment in expected
    ]
    assert [name for name, _, _ in found[len(expected) :]] == [*PLACE_COLUMNS, "_stored_at"]
    assert all(
        field.number < column.number for field in event.fields for column in PLACE_COLUMNS.values()
    )
    ((engine, key, comment),) = clickhouse.rows(
        "SELECT engine, sorting_key, comment FROM system.tables WHERE database = 'mev' AND name ="
        " {table:String}",
        {"table": event.table},
    )
    assert (engine, key, comment) == (
        "ReplacingMergeTree",
        ", ".join(event.order_by),
        event.description,
    )


def columns_of(store: ClickHouse, database: str, event: EventType) -> list[tuple[str, str]]:
    sql = (
        "SELECT name, type FROM system.columns WHERE database = {database:String} AND table ="
        " {table:String} ORDER BY position"
    )
    return [
        (name, kind) for name, kind in store.rows(sql, {"database": database, "table": event.table})
    ]


@EVENTS
def test_table_of_an_earlier_release_gets_the_columns_it_lacks(
    event: EventType, clickhouse: ClickHouse
) -> None:
    """An old table has the key fields in another order and a row; the next start adds columns."""
    clickhouse.command("CREATE DATABASE IF NOT EXISTS old")
    kept = [field for field in reversed(event.fields) if field.name in event.order_by]
    columns = ", ".join(f"`{field.name}` {field.clickhouse_type}" for field in kept)
    table = f"old.`{event.table}`"
    clickhouse.command(
        f"CREATE TABLE {table} ({columns}, `_stored_at` DateTime64(3, 'UTC') DEFAULT now64(3)) "
        f"ENGINE = ReplacingMergeTree ORDER BY ({', '.join(event.order_by)})"
    )
    clickhouse.command(f"INSERT INTO {table} (`{event.key}`) VALUES ('from before')")
    for _ in range(2):
        clickhouse.command(event.add_columns_sql("old"))
    assert sorted(columns_of(clickhouse, "old", event)) == sorted(
        columns_of(clickhouse, "mev", event)
    )
    places = ", ".join(PLACE_COLUMNS)
    assert clickhouse.rows(f"SELECT `{event.key}`, {places} FROM {table}") == [
        ("from before", 0, -1, -1)
    ]
    added = [field.name for field in event.fields if field.name not in event.order_by]
    assert (
        len(clickhouse.rows(f"SELECT {', '.join(f'`{name}`' for name in added)} FROM {table}")) == 1
    )
    clickhouse.command(f"DROP TABLE {table}")


def test_sink_adds_the_columns_that_a_table_lacks_at_its_start(clickhouse: ClickHouse) -> None:
    arbitrage = EVENT_TYPES["arbitrage"]
    clickhouse.command("ALTER TABLE mev.arbitrage DROP COLUMN tips")
    assert "tips" not in dict(columns_of(clickhouse, "mev", arbitrage))
    Writer(clickhouse, lambda _records: None, "cluster").prepare()
    assert list(dict(columns_of(clickhouse, "mev", arbitrage))) == [
        *arbitrage.clickhouse_types,
        *PLACE_COLUMNS,
        "_stored_at",
    ]


@EVENTS
def test_the_engine_reads_every_field_of_a_message(
    event: EventType, clickhouse: ClickHouse
) -> None:
    message = full_message(event)
    insert(clickhouse, event, message.SerializeToString())
    columns = ", ".join(f"`{field.name}`" for field in event.fields)
    (row,) = clickhouse.rows(f"SELECT {columns} FROM mev.`{event.table}`")
    assert dict(zip(event.clickhouse_types, map(stored, row), strict=True)) == fields(message)


def fields(message: Message) -> dict[str, object]:
    """Return a message's fields as plain values."""
    return {field.name: stored(value) for field, value in message.ListFields()}


def stored(value: Any) -> object:
    """Return a value of a message or a table as plain lists and dictionaries."""
    if isinstance(value, Message):
        return fields(value)
    if isinstance(value, str | int | float):
        return value
    return (
        {k: stored(v) for k, v in value.items()}
        if hasattr(value, "items")
        else [stored(one) for one in value]
    )


@EVENTS
def test_the_engine_reads_a_newer_message_without_its_new_field(
    event: EventType, clickhouse: ClickHouse
) -> None:
    message = full_message(event)
    setattr(message, event.key, "newer")
    insert(clickhouse, event, message.SerializeToString() + b"\xa2\x06\x03new")
    condition = f"`{event.key}` = 'newer'"
    assert clickhouse.rows(f"SELECT count() FROM mev.`{event.table}` WHERE {condition}") == [(1,)]


def test_the_engine_stores_nothing_of_a_block_with_an_unreadable_record(
    clickhouse: ClickHouse,
) -> None:
    event = EVENT_TYPES["tick"]
    good = event.message(market_id="whole-block", timestamp_ns=1).SerializeToString()
    with pytest.raises(UnreadableBlockError):
        insert(clickhouse, event, good, b"\xff\xff", good)
    assert clickhouse.rows("SELECT count() FROM mev.tick WHERE market_id = 'whole-block'") == [(0,)]


@EVENTS
def test_the_json_schema_describes_what_the_ingest_takes(event: EventType) -> None:
    schema = event.json_schema()
    properties = schema["properties"]
    assert isinstance(properties, dict)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (schema["title"], schema["type"], schema["additionalProperties"]) == (
        event.name,
        "object",
        False,
    )
    assert schema["required"] == list(event.required)
    assert list(properties) == [field.name for field in event.fields]
    for field in event.fields:
        assert properties[field.name]["description"] == field.description
        assert properties[field.name].get("unit", "") == field.unit


def test_the_json_schema_bounds_integers_and_describes_nested_messages() -> None:
    properties: Any = EVENT_TYPES["opportunity"].json_schema()["properties"]
    assert properties["slot"]["minimum"] == 0
    assert properties["slot"]["maximum"] == 2**64 - 1
    assert (properties["detected_at_ns"]["minimum"], properties["detected_at_ns"]["maximum"]) == (
        -(2**63),
        2**63 - 1,
    )
    assert properties["simulated"]["type"] == "boolean"
    assert properties["features"]["items"] == {"type": "number"}
    step = properties["route"]["items"]
    assert (step["type"], step["additionalProperties"]) == ("object", False)
    assert step["properties"]["amount_in"]["unit"] == "base units"
    gauges: Any = EVENT_TYPES["agent_metrics"].json_schema()["properties"]
    assert gauges["gauges"]["additionalProperties"] == {"type": "number"}


@EVENTS
def test_the_dataset_schema_names_all_that_follows_from_the_type(event: EventType) -> None:
    schema = event.dataset_schema()
    listed: Any = schema["fields"]
    assert {name: schema[name] for name in ("type", "topic", "table", "key")} == {
        "type": event.name,
        "topic": event.topic,
        "table": event.table,
        "key": event.key,
    }
    assert schema["order_by"] == list(event.order_by)
    assert schema["json_schema"] == event.json_schema()
    assert [(field["name"], field["clickhouse_type"], field["required"]) for field in listed] == [
        (field.name, field.clickhouse_type, field.required) for field in event.fields
    ]
    assert len({field["number"] for field in listed}) == len(listed)


def test_every_schema_has_a_hash_of_its_own() -> None:
    hashes = {event.schema_hash for event in EVENT_TYPES.values()}
    assert len(hashes) == len(EVENT_TYPES)
    assert all(len(bytes.fromhex(text)) == 32 for text in hashes)


def test_a_record_is_keyed_by_the_key() -> None:
    event = EVENT_TYPES["bundle"]
    message = event.message(bundle_id="bundlé", slot=1)
    assert event.record(message) == {"key": "bundlé".encode(), "value": message.SerializeToString()}
