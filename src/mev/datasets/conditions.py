"""Filter conditions as SQL, with the same semantics as in the stream.

Every value is bound; only our own names are part of the SQL text.
"""

import struct
from collections.abc import Callable

from mev.wire.filters import Condition, Op, Path, resolve
from mev.wire.registry import EventType

Values = dict[str, object]
_OPERATORS = {Op.EQ: "=", Op.NE: "!=", Op.LT: "<", Op.LE: "<=", Op.GT: ">", Op.GE: ">="}
_TYPES = {
    "uint64": "UInt64",
    "uint32": "UInt32",
    "sint64": "Int64",
    "sint32": "Int32",
    "bool": "Bool",
    "string": "String",
}
# The engine parses decimal numbers inexactly; their bits are exact.
_BITS = {
    "double": ("UInt64", "reinterpretAsFloat64", "<d", "<Q"),
    "float": ("UInt32", "reinterpretAsFloat32", "<f", "<I"),
}


def condition_sql(event: EventType, condition: Condition, name: str, values: Values) -> str:
    """Return an SQL expression that is true if `condition` holds.

    Its bound values are added to `values` under names that start with `name`.
    """
    path = resolve(event, condition.field)
    test = _test(condition, path, name, values)
    if path.key is not None:
        values[f"{name}_key"] = path.key
        key = f"{{{name}_key:String}}"
        column = f"`{path.steps[0].name}`"  # `resolve` knows top-level maps only
        return f"(mapContains({column}, {key}) AND {test(f'{column}[{key}]')})"
    return _any(path, 0, "", test)


def _any(path: Path, depth: int, inside: str, test: Callable[[str], str]) -> str:
    if depth == len(path.steps):
        return test(inside)
    step = path.steps[depth]
    found = f"tupleElement({inside}, '{step.name}')" if inside else f"`{step.name}`"
    if not step.repeated:
        return _any(path, depth + 1, found, test)
    return f"arrayExists(x{depth} -> {_any(path, depth + 1, f'x{depth}', test)}, {found})"


def _test(condition: Condition, path: Path, name: str, values: Values) -> Callable[[str], str]:
    scalar = path.scalar
    if isinstance(condition.value, tuple):
        negated = "NOT " if condition.op is Op.NOT_IN else ""
        if bits := _BITS.get(scalar.name):
            values[name] = [_bits(scalar.name, value) for value in condition.value]
            found = f"arrayMap(v -> {bits[1]}(v), {{{name}:Array({bits[0]})}})"
            return lambda expression: f"({negated}has({found}, {expression}))"
        values[name] = list(condition.value)
        return lambda expression: (
            f"({negated}({expression} IN {{{name}:Array({_TYPES[scalar.name]})}}))"
        )
    operator = _OPERATORS[condition.op]
    if bits := _BITS.get(scalar.name):
        values[name] = _bits(scalar.name, condition.value)
        return lambda expression: f"({expression} {operator} {bits[1]}({{{name}:{bits[0]}}}))"
    values[name] = condition.value
    return lambda expression: f"({expression} {operator} {{{name}:{_TYPES[scalar.name]}}})"


def _bits(scalar: str, value: object) -> int:
    _, _, floating, integer = _BITS[scalar]
    bits: int = struct.unpack(integer, struct.pack(floating, value))[0]
    return bits
