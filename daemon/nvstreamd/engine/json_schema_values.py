"""Which values does a schema with few of them allow? As a set for comparing, as a list for writing down."""

from __future__ import annotations

import itertools
import math
from typing import Any, Final

Schema = dict[str, Any]
Tag = tuple[str, Any]

# Arrays without duplicates of one schema: all those of five values.
MOST_ARRAYS: Final = 400
_ITEM_KEYS: Final = frozenset({
    "enum", "const", "type", "title", "description", "default", "examples", "example", "deprecated", "readOnly",
    "writeOnly", "$comment",
})  # fmt: skip
_ARRAY_KEYS: Final = _ITEM_KEYS - {"enum", "const"} | {"items", "minItems", "maxItems"}
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "null": (type(None),),
}  # fmt: skip


def tag_of(value: object) -> Tag | None:
    """A scalar so that two are equal when JSON Schema says so: 1 and 1.0 are, 1 and true are not."""
    match value:
        case bool() | None:
            return ("constant", value)
        case int() | float():
            return ("number", value)
        case str():
            return ("string", value)
    return None


def constants(schema: object) -> list[Any] | None:
    """The scalars that a schema names, of its types, each once; None when it allows others or has other conditions."""
    if not isinstance(schema, dict) or not schema.keys() <= _ITEM_KEYS:
        return None
    by_type: dict[str, list[Any]] = {"boolean": [False, True], "null": [None]}
    named = [schema["const"]] if "const" in schema else schema.get("enum", by_type.get(str(schema.get("type"))))
    if not isinstance(named, list) or {"const", "enum"} <= schema.keys():
        return None
    tags = [(tag_of(value), value) for value in named if _is_of(value, schema.get("type"))]
    return None if any(tag is None for tag, _ in tags) else list(dict(tags).values())


def _is_of(value: object, kind: object) -> bool:
    if kind is None:
        return True
    kinds = kind if isinstance(kind, list) else [kind]
    return any(_is_one(value, str(each)) for each in kinds)


def _is_one(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, float) and kind == "integer":
        return value.is_integer()
    return isinstance(value, _TYPES.get(kind, ()))


def arrays(schema: Schema, values: list[Any]) -> list[list[Any]] | None:
    """All arrays without duplicates of these values, in any order; None when they are many or have other conditions."""
    if not schema.keys() <= _ARRAY_KEYS:
        return None
    least, most = _bound(schema.get("minItems", 0)), _bound(schema.get("maxItems", len(values)))
    if least is None or most is None or len(values) > MOST_ARRAYS:
        return None
    sizes = range(least, min(most, len(values)) + 1)
    if sum(math.perm(len(values), size) for size in sizes) > MOST_ARRAYS:
        return None
    return [list(each) for size in sizes for each in itertools.permutations(values, size)]


def _bound(value: object) -> int | None:
    """A bound of a schema; what is no count the grammar refuses."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        return None
    return int(value)
