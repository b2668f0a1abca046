"""Tables of the fields of a message, by which the native module knows it."""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

_KINDS = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_SINT64: "sint64",
    FieldDescriptor.TYPE_SINT32: "sint32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_MESSAGE: "message",
}
FieldRow = tuple[str, str, int, str, str, int]


def tables(descriptor: Descriptor) -> list[list[FieldRow]]:
    """Return the fields of a message, and of those in it: name, JSON name, number, type, label.

    The last element of a row is the index of a field's message.
    """
    messages = [descriptor]
    found: list[list[FieldRow]] = []
    for message in messages:  # grows during iteration
        rows = []
        for field in message.fields:
            inner = 0
            if field.message_type is not None:
                if field.message_type not in messages:
                    messages.append(field.message_type)
                inner = messages.index(field.message_type)
            rows.append(
                (
                    field.name,
                    field.camelcase_name,
                    field.number,
                    _KINDS.get(field.type, f"type {field.type}"),
                    _label(field),
                    inner,
                )
            )
        found.append(rows)
    return found


def _label(field: FieldDescriptor) -> str:
    if not field.is_repeated:
        return "single"
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    return "map" if is_map else "repeated"
