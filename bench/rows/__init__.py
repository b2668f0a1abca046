"""Every row, by name, in the order of the table."""

from bench.harness import Row
from bench.rows import (
    active_model,
    auth,
    capture,
    catchup,
    codec,
    control,
    crypto,
    distributed,
    export,
    filters,
    health,
    idle,
    latency,
    onnx,
    predict,
    publish,
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
    *onnx.ROWS,
    *distributed.ROWS,
    *active_model.ROWS,
)
ROWS: dict[str, Row] = {row.name: row for row in _ALL}
