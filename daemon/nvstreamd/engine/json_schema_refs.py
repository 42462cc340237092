"""To what do the references in a schema lead, and which values may a property have there?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote

from nvstreamd.engine.json_schema_values import Schema, Tag, constants, tag_of

_LONGEST_CHAIN: Final = 16
_DEEPEST_UNION: Final = 8
_MOST_NAMES: Final = 64
# What stands below these is no schema, whoever points there.
_DATA: Final = frozenset({"const", "enum", "default", "examples", "example"})
_SAYS_NOTHING: Final = frozenset({"$ref", "title", "description", "default", "examples", "deprecated"})
_NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


class Refs:
    """The references of one document, each followed once. Those to other documents lead nowhere."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._targets: dict[str, Any] = {}
        # By identity; the schema is kept so that nothing else gets its place.
        self._tags: dict[tuple[int, str], tuple[Any, frozenset[Tag]]] = {}
        self._constants_of: dict[int, tuple[Any, frozenset[Tag]]] = {}
        self._tagged: dict[int, tuple[Any, list[str]]] = {}

    def steps(self) -> frozenset[str]:
        """Names on the ways of all references followed so far."""
        return frozenset(step for ref in self._targets for step in ref.split("/"))

    def target(self, schema: Schema) -> Any:
        """The target of a schema's reference, None without one."""
        ref = schema.get("$ref")
        if not isinstance(ref, str) or not ref.startswith("#"):
            return None
        if ref not in self._targets:
            self._targets[ref] = self._look_up(ref)
        return self._targets[ref]

    def resolved(self, schema: Any) -> Any:
        """A schema behind the references that are all it says."""
        for _ in range(_LONGEST_CHAIN):
            if not isinstance(schema, dict) or not schema.keys() <= _SAYS_NOTHING:
                break
            found = self.target(schema)
            if found is None:
                break
            schema = found
        return schema

    def values(self, schema: Any) -> list[Any] | None:
        """The scalars of a schema that allows no others."""
        return constants(self.resolved(schema))

    def tagged(self, schema: Any) -> list[str]:
        """Names of properties that have constants for values."""
        schema = self.resolved(schema)
        if id(schema) not in self._tagged:
            parts = [part.get("properties") for part in self._parts(schema)]
            properties = [each for each in parts if isinstance(each, dict)]
            names = [name for each in properties for name, value in each.items() if self._constants(value)]
            self._tagged[id(schema)] = (schema, names[:_MOST_NAMES])
        return self._tagged[id(schema)][1]

    def tags(self, schema: Any, name: str, depth: int = 0) -> frozenset[Tag]:
        """The values that a schema allows for a property, all different from any other; empty: not known."""
        schema = self.resolved(schema)
        key = (id(schema), name)
        if key not in self._tags:
            self._tags[key] = (schema, frozenset())  # for who comes back here
            self._tags[key] = (schema, self._find_tags(schema, name, depth) if depth < _DEEPEST_UNION else frozenset())
        return self._tags[key][1]

    def limiting(self, schema: Any, name: str) -> list[Schema]:
        """Those of its parts, and of the branches of its unions, that limit the property as `tags` says."""
        waiting, found, seen = [schema], [], set()
        while waiting:
            schema = self.resolved(waiting.pop())
            if id(schema) in seen or not self.tags(schema, name):
                continue
            seen.add(id(schema))
            for part in self._parts(schema):
                if self._limit(part, name):
                    found.append(part)
                    break
                waiting += [each for key in ("oneOf", "anyOf") if isinstance(part.get(key), list) for each in part[key]]
        return found

    def _find_tags(self, schema: Any, name: str, depth: int) -> frozenset[Tag]:
        for part in self._parts(schema):
            own = self._limit(part, name)
            if own:
                return own
            for union in (part.get("oneOf"), part.get("anyOf")):
                below = [self.tags(each, name, depth + 1) for each in union] if isinstance(union, list) else []
                if below and all(below):
                    return frozenset().union(*below)
        return frozenset()

    def _limit(self, part: Schema, name: str) -> frozenset[Tag]:
        """The values of the property by this part alone; none known where it is not about objects."""
        properties, kinds = part.get("properties"), part.get("type", "object")
        if not isinstance(properties, dict) or "object" not in (kinds if isinstance(kinds, list) else [kinds]):
            return frozenset()
        return self._constants(properties.get(name))

    def _parts(self, schema: Any) -> Iterable[Schema]:
        """The schema, what it refers to, and what it adds up: a text must meet all of them."""
        waiting: list[Any] = [schema]
        found: list[Schema] = []
        while waiting and len(found) < _LONGEST_CHAIN:
            part = waiting.pop()
            if isinstance(part, dict):
                found.append(part)
                waiting.append(self.target(part))
                waiting.extend(part["allOf"][:_LONGEST_CHAIN] if isinstance(part.get("allOf"), list) else ())
        return found

    def _constants(self, schema: Any) -> frozenset[Tag]:
        """The values that a property is limited to, whatever else its schema says."""
        schema = self.resolved(schema)
        if not isinstance(schema, dict):
            return frozenset()
        if id(schema) not in self._constants_of:
            named = [schema["const"]] if "const" in schema else schema.get("enum")
            values = named if isinstance(named, list) else []
            tags = frozenset(tag for each in values if (tag := tag_of(each)) is not None)
            scalars = all(tag_of(each) is not None for each in values)
            self._constants_of[id(schema)] = (schema, tags if scalars else frozenset())
        return self._constants_of[id(schema)][1]

    def _look_up(self, ref: str) -> Any:
        place, names = self._root, ref[1:].split("/")
        if names[0]:
            return None
        steps = [unquote(name).replace("~1", "/").replace("~0", "~") for name in names[1:]]
        for step, before in zip(steps, ["", *steps], strict=False):
            if step in _DATA and before not in _NAMED:
                return None
            if isinstance(place, dict) and step in place:
                place = place[step]
            elif isinstance(place, list) and step.isdecimal() and int(step) < len(place):
                place = place[int(step)]
            else:
                return None
        return place
