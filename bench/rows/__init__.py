"""Every row, by name, in the order of the table."""

from bench.harness import Row
from bench.rows import (
    auth,
    capture,
    catchup,
    codec,
    control,
    crypto,
    export,
    filters,
    health,
    idle,
    latency,
    predict,
    publish,
    seat,
    sink,
    websocket,
    webtransport,
)

_ALL = (
    *codec.ROWS,
    *publish.ROWS,
    *sink.ROWS,
    export.ROW,
    *websocket.ROWS,
    *webtransport.ROWS,
    *filters.ROWS,
    *latency.ROWS,
    idle.ROW,
    catchup.ROW,
    capture.ROW,
    health.ROW,
    *auth.ROWS,
    *crypto.ROWS,
    control.ROW,
    *predict.ROWS,
    *seat.ROWS,
)
ROWS: dict[str, Row] = {row.name: row for row in _ALL}
