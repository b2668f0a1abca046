"""Generate ``docs/asyncapi.json``, the stream as AsyncAPI 3.0; ``--check`` fails when stale.

Event types, choices, outcomes, limits and error codes are read from the code.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mev
from mev.core.errors import MevError
from mev.limits.shedding import RateLimitedError
from mev.realtime import errors, message_fields
from mev.realtime.options import DeliveryMode, OnSlow
from mev.realtime.positions import StartOutcome
from mev.realtime.websocket.connection import PATH
from mev.wire.registry import EVENT_TYPES, EventType
from mev.wire.resume import BadResumeError

TARGET = Path(__file__).resolve().parent.parent / "docs/asyncapi.json"
Schema = dict[str, Any]

_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXT: Schema = {"type": "string"}


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with these members and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _op(
    name: str, required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None
) -> Schema:
    return _object({"op": {"const": name}, **required}, optional)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _by_partition(value: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": {"type": "object", "additionalProperties": value},
    }


_ID, _TOKEN, _CURSOR = _ref("subscriptionId"), _ref("resumeToken"), _ref("cursor")
_TERMS = {
    "topics": _ref("topics"),
    "filter": {
        "type": ["array", "null"],
        "items": _TEXT,
        "description": "Conditions that must all hold (docs/filters.md).",
    },
    "on_slow": {"enum": list(OnSlow)},
    "max_rate": {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": message_fields.MAX_RATE,
        "description": "Events a second.",
    },
}
_BEHIND = {
    "dropped": {**_COUNT, "description": "Events lost since the subscription's last message."},
    "dropped_total": {**_COUNT, "description": "Events that the subscription lost in all."},
    "queued": {**_COUNT, "description": "Events that wait behind this message."},
    "lag_ms": {**_COUNT, "description": "How long this message waited for the client."},
}

SHARED: dict[str, Schema] = {
    "subscriptionId": {
        "type": "string",
        "minLength": 1,
        "maxLength": message_fields.MAX_ID,
        "description": "The client's own name for a subscription.",
    },
    "resumeToken": {"type": "string", "description": "Where to go on: kept and given back unread."},
    "cursor": {
        **_by_partition(_COUNT),
        "description": "By event type and partition, the next offset.",
    },
    "topics": {
        "type": "array",
        "items": {"type": "string", "maxLength": message_fields.MAX_PATTERN},
        "minItems": 1,
        "maxItems": message_fields.MAX_PATTERNS,
        "description": "Event types, or patterns of them.",
    },
    "from": {
        "description": "Where a subscription begins.",
        "oneOf": [
            {"enum": ["live", "earliest"]},
            _object({"resume": _TOKEN}),
            _object({"time": {"type": "string", "format": "date-time"}}),
            _object({"slot": _COUNT}),
            _object({"cursor": _CURSOR}, {"log": {"type": ["string", "null"]}}),
        ],
    },
    "undecodable": _object(
        {
            "type": {"enum": list(EVENT_TYPES)},
            "undecodable": {"type": "string", "contentEncoding": "base64"},
        }
    ),
}


def from_client() -> dict[str, Schema]:
    """Return the schema of each message that a client may send."""
    credential: Schema = {
        "type": "string",
        "minLength": 1,
        "maxLength": message_fields.MAX_CREDENTIAL,
    }
    return {
        "auth": {
            **_op("auth", {}, dict.fromkeys(("api_key", "ticket"), credential)),
            "minProperties": 2,
        },
        "subscribe": _op(
            "subscribe",
            {"id": _ID, "topics": _TERMS["topics"]},
            {
                **{name: _TERMS[name] for name in ("filter", "on_slow", "max_rate")},
                "from": _ref("from"),
                "delivery": {"enum": list(DeliveryMode)},
                "snapshot": {
                    "type": "boolean",
                    "description": "The newest event of each key first.",
                },
            },
        ),
        "update": _op("update", {"id": _ID}, _TERMS),
        "unsubscribe": _op("unsubscribe", {"id": _ID}),
        "ping": _op("ping", {}, {"id": {}}),
    }


def from_server() -> dict[str, Schema]:
    """Return the schema of each message that the server sends."""
    events: Schema = {"type": "array", "items": _ref("event")}
    published: Schema = {
        "type": "array",
        "items": _COUNT,
        "description": "When each event was published, ms since the epoch.",
    }
    lost = {"sequence": _COUNT, "dropped": _COUNT, "dropped_total": _COUNT}
    confirmed = {
        "id": _ID,
        **_TERMS,
        "delivery": {"enum": list(DeliveryMode)},
        "start": {"enum": list(StartOutcome)},
        "log": {"type": "string", "description": "Which log the offsets are of."},
        "cursor": _CURSOR,
        "resume": _TOKEN,
    }
    places = {
        "gaps": _by_partition(_object({"from": _COUNT, "to": _COUNT})),
        "positions": _by_partition(_object({"earliest": _COUNT, "latest": _COUNT})),
    }
    return {
        "authenticated": _op("authenticated", {}),
        "subscribed": _op("subscribed", confirmed, places),
        "updated": _op("updated", confirmed, places),
        "events": _op(
            "events",
            {
                "id": _ID,
                "events": events,
                "published_ms": published,
                "cursor": _CURSOR,
                "resume": _TOKEN,
                **_BEHIND,
            },
        ),
        "snapshot": _op(
            "snapshot",
            {
                "id": _ID,
                "events": events,
                "published_ms": published,
                "left": {**_COUNT, "description": "Events of the snapshot that are still to come."},
            },
        ),
        "progress": _op("progress", {"id": _ID, **lost}),
        "unsubscribed": _op("unsubscribed", {"id": _ID, **lost}),
        "pong": _op("pong", {}, {"id": _TEXT}),
        "closing": _op(
            "closing",
            {
                "code": {"enum": ["going_away", "too_slow", "disconnected", "failed"]},
                "detail": _TEXT,
                "retry_after_s": _COUNT,
                "log": _TEXT,
                "cursors": {"type": "object", "additionalProperties": _CURSOR},
                "resume": {"type": "object", "additionalProperties": _TOKEN},
            },
        ),
        "error": {
            **_op(
                "error",
                {"id": {"type": ["string", "null"]}, "code": {"enum": _codes()}, "detail": _TEXT},
            ),
            "additionalProperties": True,
        },
    }


def _codes() -> list[str]:
    """Return the codes of `error` messages."""
    known: set[str] = {
        RateLimitedError.code,
        BadResumeError.code,
        "session_ended",
        "forbidden",
        "accounts_unavailable",
        "bad_filter",
        "kafka_unavailable",
    }
    for value in vars(errors).values():
        if (
            isinstance(value, type)
            and issubclass(value, MevError)
            and value.__module__ == errors.__name__
        ):
            known.add(value.code)
    return sorted(known)


def _event(event: EventType) -> Schema:
    """Return the schema of an event as the stream renders it: every field, NaN as null."""
    schema = {name: value for name, value in event.json_schema().items() if name != "$schema"}
    members = schema["properties"].items()  # type: ignore[attr-defined]
    properties = {name: _or_null(value) for name, value in members}
    return {
        **schema,
        "properties": {"type": {"const": event.name}, **properties},
        "required": ["type", *properties],
    }


def _or_null(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    inner = {
        name: _or_null(value) if name in {"items", "additionalProperties"} else value
        for name, value in schema.items()
    }
    if "properties" in inner:
        inner["properties"] = {name: _or_null(value) for name, value in inner["properties"].items()}
    return {**inner, "type": ["number", "null"]} if inner.get("type") == "number" else inner


def document() -> Schema:
    """Return the document."""
    received, sent = from_client(), from_server()
    messages = {
        name: {"name": name, "contentType": "application/json", "payload": schema}
        for name, schema in (received | sent).items()
    }
    frame = {
        "name": "frame",
        "title": "Binary frame",
        "contentType": "application/x-protobuf",
        "description": (
            "`mev.v1.Frame` of protocol/mev/v1/stream.proto, with the sub-protocol mev.v1.protobuf."
        ),
    }
    types = {name: _event(event) for name, event in EVENT_TYPES.items()}
    schemas = SHARED | types | {"event": {"oneOf": [*map(_ref, types), _ref("undecodable")]}}
    names = {name: {"$ref": f"#/components/messages/{name}"} for name in [*messages, "frame"]}

    def operation(action: str, those: list[str], summary: str) -> Schema:
        channel = {"$ref": "#/channels/stream"}
        refs = [{"$ref": f"#/channels/stream/messages/{name}"} for name in those]
        return {"action": action, "channel": channel, "summary": summary, "messages": refs}

    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "MEV control plane: stream",
            "version": mev.__version__,
            "description": (
                "Live events and the past before them, over WebSocket: docs/websocket.md."
            ),
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "local": {
                "host": "localhost:8000",
                "protocol": "ws",
                "security": [
                    {"$ref": f"#/components/securitySchemes/{name}"}
                    for name in ("apiKey", "bearer")
                ],
            }
        },
        "channels": {
            "stream": {
                "address": PATH,
                "messages": names,
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
            }
        },
        "operations": {
            "receive": operation("receive", list(received), "What a client says."),
            "send": operation("send", [*sent, "frame"], "What the server answers and streams."),
        },
        "components": {
            "messages": {**messages, "frame": frame},
            "schemas": schemas,
            "securitySchemes": {
                "apiKey": {"type": "httpApiKey", "name": "X-API-Key", "in": "header"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def text() -> str:
    """Return the file."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit 1 when the committed document is stale",
    )
    if not parser.parse_args().check:
        TARGET.write_text(text())
    elif not TARGET.exists() or TARGET.read_text() != text():
        sys.exit("docs/asyncapi.json is stale: run `make docs`")


if __name__ == "__main__":
    main()
