"""What of a user's JSON schema goes into the grammar? The same texts or fewer, in words that llguidance knows.

Schemas are written for other readers too: pydantic and FastAPI put into them how a field is shown, what it is called,
which format a form gives it. Such annotations say nothing about the text, and are dropped; so are llguidance's own
options (`x-guidance`), which are the daemon's to set. `oneOf` whose branches a property tells apart becomes `anyOf`.
`uniqueItems` becomes a list of all arrays where there are few, and is dropped elsewhere, as the protocol says.

Only schemas are touched: a property may be called "format", and constants may contain anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from nvstreamd.engine.json_schema_refs import Refs
from nvstreamd.engine.json_schema_values import Schema, arrays
from nvstreamd.errors import InvalidRequest

FIELD: Final = "options.json_schema"
DEEPEST: Final = 128
# Formats that the grammar enforces. JSON Schema has others be annotations.
FORMATS: Final = frozenset({
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
})  # fmt: skip
# Annotations that the grammar takes for conditions which it does not know; of their kind are all that begin with "x-".
_NOTES: Final = frozenset({
    "discriminator", "example", "deprecated", "externalDocs", "xml", "contentSchema", "x-guidance",
})  # fmt: skip
# Where schemas stand in a schema: by themselves, in lists, by name.
_SCHEMA: Final = frozenset({
    "items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "contains",
    "propertyNames", "not", "if", "then", "else",
})  # fmt: skip
_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_MOST_TAGS: Final = 16
_LONGEST_LIST: Final = 1 << 18


def grammar_schema(text: str) -> str:
    """The schema to make a grammar of: every text that it describes satisfies the one given, but for `uniqueItems`.

    Work and result are bounded by the length of `text`, which the caller bounds. Raises InvalidRequest when it is no
    JSON, nests too deep, or lists too many arrays.
    """
    root = _parse(text)
    refs = Refs(root)
    schemas = list(_schemas(root, refs))
    room = _LONGEST_LIST
    # Before anything is dropped: a branch is looked at from its union, too.
    for schema in schemas:
        _tell_apart(schema, refs)
    for schema in schemas:
        room -= _enumerate(schema, refs, room)
    steps = refs.steps()
    for schema in schemas:
        for key in [key for key in schema if key in _NOTES or (key.startswith("x-") and key not in steps)]:
            del schema[key]
        if isinstance(schema.get("format"), str) and schema["format"] not in FORMATS:
            del schema["format"]
    return _written(root)


def _written(root: Any) -> str:
    text = json.dumps(root, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refused("holds half of a character") from error
    return text


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise _refused(f"nests deeper than {DEEPEST} levels") from error
    except ValueError as error:
        raise _refused(f"is no JSON: {str(error)[:200]}") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if abs(number) < float("inf") else _no_number(digits[:20])


def _refused(problem: str) -> InvalidRequest:
    return InvalidRequest(f"the JSON schema {problem}", "see json-schema.org", field=FIELD)


def _schemas(root: Any, refs: Refs) -> Iterator[Schema]:
    """Every schema in the document, once: at its place, or where a reference points to."""
    seen: set[int] = set()
    waiting = [(root, 0)]
    while waiting:
        schema, depth = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        if depth > DEEPEST:
            raise _refused(f"nests deeper than {DEEPEST} levels")
        seen.add(id(schema))
        yield schema
        waiting.extend((part, depth + 1) for part in _parts(schema))
        waiting.append((refs.target(schema), 0))


def _parts(schema: Schema) -> Iterator[Any]:
    for key, value in schema.items():
        if key in _SCHEMA and isinstance(value, dict):
            yield value
        elif key in _LISTS and isinstance(value, list):
            yield from value
        elif key in _NAMED and isinstance(value, dict):
            yield from value.values()


def _tell_apart(schema: Schema, refs: Refs) -> None:
    """Makes `anyOf` of a `oneOf` whose branches demand different values of one property, and demands that property.

    A text that meets one such branch meets no other. Where a branch may leave the property out it could meet several:
    those texts are not written. pydantic leaves a discriminator with a default out of `required`, and wants it.
    """
    branches = schema.get("oneOf")
    if not isinstance(branches, list) or not branches or not all(isinstance(each, dict) for each in branches):
        return
    name = next((name for name in _candidates(schema, branches[0], refs) if _distinct(branches, name, refs)), None)
    if name is None:
        return  # the grammar knows other ways to tell branches apart, and refuses what it cannot
    for branch in branches:
        for part in refs.limiting(branch, name):
            _demand(part, name)
    del schema["oneOf"]
    if "anyOf" in schema:
        given = schema.get("allOf")
        schema["allOf"] = [*(given if isinstance(given, list) else []), {"anyOf": branches}]
    else:
        schema["anyOf"] = branches


def _demand(part: Schema, name: str) -> None:
    """Has a schema describe only objects with this property, wherever it is used."""
    required = part.get("required")
    given = required if isinstance(required, list) else []
    part["required"] = given if name in given else [*given, name]
    part["type"] = "object"


def _candidates(schema: Schema, branch: Schema, refs: Refs) -> list[str]:
    """Properties that may tell the branches apart, the named discriminator first."""
    named = schema.get("discriminator")
    name = named.get("propertyName") if isinstance(named, dict) else None
    return list(dict.fromkeys([*([name] if isinstance(name, str) else []), *refs.tagged(branch)]))[:_MOST_TAGS]


def _distinct(branches: list[Schema], name: str, refs: Refs) -> bool:
    taken: set[Any] = set()
    for branch in branches:
        tags = refs.tags(branch, name)
        if not tags or not taken.isdisjoint(tags):
            return False
        taken |= tags
    return True


def _enumerate(schema: Schema, refs: Refs, room: int) -> int:
    """Writes an array without duplicates as the list of all such arrays, where there are few; its size as JSON."""
    if "uniqueItems" not in schema:
        return 0
    unique = schema.pop("uniqueItems")
    values = refs.values(schema.get("items")) if unique is True and schema.get("type") == "array" else None
    found = arrays(schema, values) if values is not None else None
    if found is None:
        return 0
    size = len(json.dumps(found))
    if size > room:
        raise _refused(f"has more than {_LONGEST_LIST} characters of arrays without duplicates")
    for key in ("type", "items", "minItems", "maxItems"):
        schema.pop(key, None)
    schema["enum"] = found
    return size
