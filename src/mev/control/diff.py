"""What a new version of a policy changes."""

from google.protobuf import json_format

from mev.wire.pb.control_pb2 import SetPolicy


def changes(before: SetPolicy | None, after: SetPolicy) -> dict[str, list[object]]:
    """Return old and new value of every field that differs, thresholds one by one."""
    old, new = (_flat(policy) for policy in (before or SetPolicy(), after))
    return {name: [old.get(name), new.get(name)] for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)}


def _flat(policy: SetPolicy) -> dict[str, object]:
    fields: dict[str, object] = json_format.MessageToDict(
        policy, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    thresholds = fields.pop("thresholds", {})
    return fields | {f"thresholds.{name}": value for name, value in dict(thresholds).items()}  # type: ignore[call-overload]
