"""Every row, by name, in the order of the table."""

from bench.harness import Row
from bench.rows import capture, codec, health, publish, sink, websocket

ROWS: dict[str, Row] = {row.name: row for row in (*codec.ROWS, *publish.ROWS, sink.ROW, *websocket.ROWS, capture.ROW, health.ROW)}
