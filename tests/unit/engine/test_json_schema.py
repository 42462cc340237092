"""Does what pydantic writes work as a schema, and does a text under it satisfy the schema that was sent?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter

from nvstreamd.engine.constraint import Constraints, check
from nvstreamd.engine.json_schema import grammar_schema
from nvstreamd.engine.tokenizer import Tokenizer, load
from nvstreamd.errors import InvalidRequest
from support.vocabularies import synthetic_vocabulary

MOST_TOKENS = 4000


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cat(Strict):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)]


class Dog(Strict):
    kind: Literal["dog", "puppy"] = "dog"
    good: bool


class Fish(Strict):
    kind: Literal["fish"] = "fish"
    wet: Literal[True]


class Sea(Strict):
    kind: Literal["whale"]
    size: Literal[1, 2]


Animal = Annotated[Cat | Annotated[Dog | Fish, Field(discriminator="kind")] | Sea, Field(discriminator="kind")]


class Owner(Strict):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    other: Animal


class Leaf(Strict):
    kind: Literal["leaf"] = "leaf"


class Branch(Strict):
    kind: Literal["branch"] = "branch"
    below: Annotated[list[Annotated[Leaf | Branch, Field(discriminator="kind")]], Field(max_length=1)]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"
    NONE = 0


class Sets(Strict):
    few: set[Colour]
    letters: Annotated[set[Literal["a", "b", "c", "d"]], Field(min_length=2)]
    flags: frozenset[bool]
    at_most_one: Annotated[set[Annotated[int, Field(ge=0, le=9)]], Field(max_length=1)]


class Strings(Strict):
    secret: Annotated[SecretStr, Field(max_length=4)]
    place: Annotated[Path, Field(json_schema_extra={"maxLength": 5})]
    raw: Annotated[bytes, Field(json_schema_extra={"maxLength": 3})]
    number: UUID
    hint: Annotated[str, Field(max_length=3, title="Hint", description="x", examples=["y"],
                               json_schema_extra={"readOnly": True, "example": "z", "format": "shape-of-things"})]


class Named(Strict):
    """Properties with the names of keywords."""

    format: Literal["path"]
    guidance: Annotated[Literal["x"], Field(alias="x-guidance")]
    uniqueItems: bool
    oneOf: Annotated[list[Literal[1]], Field(max_length=2)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(synthetic_vocabulary())


@pytest.fixture(scope="module")
def constraints(tokenizer: Tokenizer) -> Constraints:
    return Constraints(tokenizer)


def texts(tokenizer: Tokenizer, constraints: Constraints, schema: object, count: int = 12) -> Iterator[str]:
    """Texts that the grammar allows, each token drawn from those that may come."""
    checked = check(json.dumps(schema))
    for seed in range(count):
        rng = np.random.default_rng(seed)
        constraint = constraints.compile(checked)
        ids: list[int] = []
        while not constraint.complete:
            assert len(ids) < MOST_TOKENS, tokenizer.decode(ids)
            token = int(rng.choice(np.flatnonzero(constraint.allowed())))
            if token in tokenizer.eog_ids:
                break
            constraint.advance([token])
            ids.append(token)
        yield b"".join(tokenizer.token_bytes(token) for token in ids).decode()


@pytest.mark.parametrize("model", [Cat, Owner, Branch, Sets, Strings, Named, Animal, set[Literal[1, 2]]], ids=str)
def test_what_pydantic_writes_is_what_pydantic_reads(tokenizer: Tokenizer, constraints: Constraints,
                                                     model: Any) -> None:
    adapter = TypeAdapter(model)
    for text in texts(tokenizer, constraints, adapter.json_schema()):
        adapter.validate_json(text)


def test_every_branch_of_a_union_is_written(tokenizer: Tokenizer, constraints: Constraints) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Animal)
    kinds = {json.loads(text)["kind"] for text in texts(tokenizer, constraints, adapter.json_schema(), 40)}
    assert kinds == {"cat", "dog", "puppy", "fish", "whale"}


def test_arrays_of_few_values_have_no_duplicates_and_any_order(tokenizer: Tokenizer, constraints: Constraints) -> None:
    schema = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 2}
    found = {tuple(json.loads(text)) for text in texts(tokenizer, constraints, schema, 80)}
    assert all(len(set(each)) == len(each) >= 2 for each in found)
    assert ("b", "a") in found and ("a", "b") in found and any(len(each) == 3 for each in found)


ONE_OF_BY_PROPERTY = {"oneOf": [
    {"properties": {"k": {"const": 1}, "n": {"type": "integer"}}},
    {"properties": {"k": {"enum": [2, "x"]}}},
]}  # fmt: skip


def test_a_union_whose_branches_leave_the_property_open_writes_it(tokenizer: Tokenizer,
                                                                  constraints: Constraints) -> None:
    """Without it, or as no object, a text would meet both branches, and `oneOf` wants exactly one."""
    schema = {**ONE_OF_BY_PROPERTY, "additionalProperties": False, "properties": {"k": {}, "n": {}}}
    for text in texts(tokenizer, constraints, schema):
        assert json.loads(text)["k"] in (1, 2, "x")


CHANGED = {
    "options at the root": ({"type": "string", "x-guidance": {"lenient": True}}, {"type": "string"}),
    "options below": ({"items": {"x-guidance": {"coerce_one_of": True}}}, {"items": {}}),
    "an unknown format": ({"format": "password", "type": "string"}, {"type": "string"}),
    "a format behind a reference": (
        {"$ref": "#/components/A", "components": {"A": {"format": "path"}}}, {"$ref": "#/components/A",
                                                                           "components": {"A": {}}}),
    "many unique items": (
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"type": "array", "items": {"type": "integer"}}),
    "unique items of a type": (
        {"type": "array", "items": {"enum": [1, 1.0, "a", True], "type": "integer"}, "uniqueItems": True},
        {"enum": [[], [1.0]]}),
    "unique items that need not be": (
        {"type": "array", "items": {"const": 1}, "uniqueItems": False}, {"type": "array", "items": {"const": 1}}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_what_says_nothing_about_the_text_is_dropped(name: str) -> None:
    given, expected = CHANGED[name]
    assert json.loads(grammar_schema(json.dumps(given))) == expected


KEPT = {
    "a known format": {"type": "string", "format": "date-time"},
    "properties with names of keywords": {"properties": {
        name: {"type": "string"} for name in ("format", "x-guidance", "uniqueItems", "oneOf", "const", "$ref")}},
    "constants": {"const": {"format": "path", "x-guidance": 1}, "enum": [{"uniqueItems": True, "oneOf": []}],
                  "default": {"format": "path"}, "examples": [{"x-guidance": {}}]},
    "constants that a reference names": {"$ref": "#/const", "const": {"format": "path"}},
    "branches that differ in no property": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
    "branches that share a value": {"oneOf": [
        {"properties": {"k": {"enum": [1, 2]}}}, {"properties": {"k": {"enum": [2, 3]}}}]},
    "1 and 1.0 are one value": {"oneOf": [
        {"properties": {"k": {"const": 1}}}, {"properties": {"k": {"const": 1.0}}}]},
    "branches about strings": {"oneOf": [
        {"type": "string", "properties": {"k": {"const": 1}}}, {"type": "string", "properties": {"k": {"const": 2}}}]},
    "no object": [1, "x-guidance"],
    "true": True,
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_the_rest_stays(name: str) -> None:
    assert json.loads(grammar_schema(json.dumps(KEPT[name]))) == KEPT[name]


def test_options_of_the_grammar_are_not_a_users(tokenizer: Tokenizer, constraints: Constraints) -> None:
    """`lenient` would ignore what the schema says where the grammar does not know it."""
    with pytest.raises(InvalidRequest, match="not"):
        constraints.json_schema('{"not": {"type": "null"}, "x-guidance": {"lenient": true}}')


HOSTILE = {
    "deep": '{"items":' * 600 + "{}" + "}" * 600,
    "very deep": "[" * 100_000,
    "infinite": '{"minimum": 1e999}',
    "no number": '{"minimum": NaN}',
    "many digits": '{"minimum": ' + "9" * 10_000 + "}",
    "half a character": '{"const": "\\ud800"}',
    "many arrays": json.dumps({"anyOf": [
        {"type": "array", "uniqueItems": True, "items": {"enum": list("abcde")}} for _ in range(10_000)]}),
    "broken": '{"items":',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        grammar_schema(HOSTILE[name])
    assert error.value.field == "options.json_schema" and len(str(error.value)) < 500


CHEAP = {
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "a union of itself": {"oneOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "many unions of one large enum": {
        "$defs": {"e": {"enum": list(range(20_000))}, "o": {"properties": {"k": {"$ref": "#/$defs/e"}}}},
        "anyOf": [{"oneOf": [{"$ref": "#/$defs/o"}, {"$ref": "#/$defs/o"}]} for _ in range(8_000)]},
    "a large union": {"oneOf": [{"properties": {"k": {"const": n}}} for n in range(20_000)]},
    "a large set": {"type": "array", "uniqueItems": True, "items": {"enum": list(range(100_000))}},
    "many items wanted": {"type": "array", "uniqueItems": True, "items": {"enum": [1, 2]}, "minItems": 10**15},
}  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.thorough] if name == "many unions of one large enum" else [])
    for name in CHEAP])
def test_the_work_grows_with_the_schema_only(name: str) -> None:
    """Were one of these squared, the suite would not come to its end."""
    assert json.loads(grammar_schema(json.dumps(CHEAP[name])))
