"""Does a constrained text always end as JSON of its schema, and does a hostile schema end as an error?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nvstreamd.engine.constraint import Constraint, Constraints, check
from nvstreamd.engine.sampling import Sampling, choose
from nvstreamd.engine.tokenizer import Tokenizer, load
from nvstreamd.errors import InvalidRequest
from support.files import SMOLLM2
from support.vocab_gguf import read_metadata

SAMPLING = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
MOST_TOKENS = 600


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(read_metadata(SMOLLM2))


@pytest.fixture(scope="module")
def constraints(tokenizer: Tokenizer) -> Constraints:
    return Constraints(tokenizer)


def walk(tokenizer: Tokenizer, constraint: Constraint, seed: int) -> Iterator[int]:
    """Random logits, masked and drawn, until the schema or the model ends the text."""
    rng = np.random.default_rng(seed)
    tokens = [0]
    while not constraint.complete:
        assert len(tokens) < MOST_TOKENS, tokenizer.decode(tokens)
        row = (4 * rng.standard_normal(tokenizer.vocab_size)).astype(np.float32)
        token = choose(row, tokens, replace(SAMPLING, seed=seed), constraint.allowed())
        if token in tokenizer.eog_ids:
            return
        constraint.advance([token])
        tokens.append(token)
        yield token


def is_person(value: Any) -> bool:
    return (set(value) <= {"name", "age", "tags"} and {"name", "age"} <= set(value)
            and len(value["name"]) <= 12 and 0 <= value["age"] <= 150
            and all(tag in ("a", "b") for tag in value.get("tags", [])) and len(value.get("tags", [])) <= 3)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
PAIR = {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 9}, "minItems": 2, "maxItems": 4}
NESTED = {"type": "object", "properties": {"inner": PERSON, "pair": PAIR}, "required": ["inner", "pair"],
          "additionalProperties": False}
CITIES = ["Z\u00fcrich", "\u6771\u4eac", "\u05d7\u05d9\u05e4\u05d4", "\U0001f642", "quo\"te"]


def is_pair(value: Any) -> bool:
    return 2 <= len(value) <= 4 and all(-9 <= item <= 9 for item in value)


SCHEMAS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "object": (PERSON, is_person),
    "enum": ({"enum": [1, "two", None, [3], True]}, lambda value: value in (1, "two", None, [3], True)),
    "array": (PAIR, is_pair),
    "nested": (NESTED, lambda value: is_person(value["inner"]) and is_pair(value["pair"])),
    "not ascii": ({"enum": CITIES}, lambda value: value in CITIES),
    "any string": ({"type": "string", "minLength": 2, "maxLength": 8}, lambda value: 2 <= len(value) <= 8),
    "pattern": ({"type": "string", "pattern": "^(\u00e4|\u00f6)+[0-9]{2}x{0,4}$", "maxLength": 12},
                lambda value: re.fullmatch("(\u00e4|\u00f6)+[0-9]{2}x{0,4}", value) is not None),
    "either": ({"anyOf": [PAIR, {"type": "boolean"}]}, lambda value: isinstance(value, bool) or is_pair(value)),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_random_walk_ends_in_valid_json(tokenizer: Tokenizer, constraints: Constraints, name: str) -> None:
    schema, valid = SCHEMAS[name]
    checked = check(json.dumps(schema))
    for seed in range(6):
        ids = list(walk(tokenizer, constraints.compile(checked), seed))
        text = b"".join(tokenizer.token_bytes(token) for token in ids).decode()
        assert valid(json.loads(text)), text


@pytest.mark.parametrize("name", ["nested", "not ascii"])
def test_a_replayed_constraint_allows_what_the_undisturbed_one_allows(tokenizer: Tokenizer, constraints: Constraints,
                                                                      name: str) -> None:
    schema = check(json.dumps(SCHEMAS[name][0]))
    undisturbed = constraints.compile(schema)
    taken: list[int] = []
    for token in walk(tokenizer, undisturbed, 3):
        taken.append(token)
        if len(taken) % 7 == 1:
            other = constraints.compile(schema)
            other.advance(taken)
            assert other.complete == undisturbed.complete
            assert other.complete or np.array_equal(other.allowed(), undisturbed.allowed())


def test_end_tokens_are_allowed_exactly_when_the_json_may_end(tokenizer: Tokenizer, constraints: Constraints) -> None:
    constraint = constraints.json_schema('{"type": "integer", "minimum": 0, "maximum": 99}')
    ends = sorted(tokenizer.eog_ids)
    assert not constraint.allowed()[ends].any()
    constraint.advance(tokenizer.encode("4", add_special=False, parse_special=False))
    assert constraint.allowed()[ends].all() and not constraint.complete
    constraint.advance(tokenizer.encode("2", add_special=False, parse_special=False))
    assert constraint.complete


def test_a_text_that_goes_on_past_an_end_token_is_complete(tokenizer: Tokenizer, constraints: Constraints) -> None:
    """ignore_eos hands the end token to the constraint like any other."""
    constraint = constraints.json_schema('{"type": "integer"}')
    constraint.advance([*tokenizer.encode("4", add_special=False, parse_special=False), min(tokenizer.eog_ids)])
    assert constraint.complete


def test_forced_tokens_are_the_only_ones_that_are_allowed(tokenizer: Tokenizer, constraints: Constraints) -> None:
    """So a guess of them is never wrong."""
    constraint, text, forced = constraints.json_schema(json.dumps({"const": "one two three four five six"})), [], 0
    while not constraint.complete:
        guess, allowed = constraint.forced(4), np.flatnonzero(constraint.allowed())
        assert not guess or allowed.tolist() == [guess[0]]
        forced += bool(guess)
        text.append(int(allowed[0]))
        constraint.advance(text[-1:])
    assert json.loads(tokenizer.decode(text)) == "one two three four five six" and forced > 5


def test_of_a_long_schema_nothing_is_forced(constraints: Constraints) -> None:
    """Its text is found at once: a megabyte of it held up everybody's passes for a quarter of a second, each."""
    assert constraints.json_schema(json.dumps({"const": "abc " * 20_000})).forced(4) == ()


def test_control_tokens_never_spell_json(tokenizer: Tokenizer, constraints: Constraints) -> None:
    constraint = constraints.json_schema('{"type": "string"}')
    constraint.advance(tokenizer.encode('"', add_special=False, parse_special=False))
    control = [token for token in range(tokenizer.vocab_size) if not tokenizer.token_bytes(token)]
    assert control and not constraint.allowed()[control].any()


def test_a_token_that_the_schema_forbids_is_an_error_and_no_completion(tokenizer: Tokenizer,
                                                                       constraints: Constraints) -> None:
    constraint = constraints.json_schema('{"type": "integer"}')
    constraint.advance(tokenizer.encode("no number", add_special=False, parse_special=False))
    assert not constraint.complete
    with pytest.raises(InvalidRequest):
        constraint.allowed()


def test_white_space_cannot_go_on_for_ever(tokenizer: Tokenizer, constraints: Constraints) -> None:
    constraint = constraints.json_schema(json.dumps(PAIR))
    constraint.advance(tokenizer.encode("[", add_special=False, parse_special=False))
    space = tokenizer.encode(" ", add_special=False, parse_special=False)
    assert len(space) == 1
    for _ in range(64):
        assert constraint.allowed()[space[0]]
        constraint.advance(space)
    assert not constraint.allowed()[space[0]]


def test_a_vocabulary_with_unused_rows_gets_a_mask_of_the_tokenizers_size(constraints: Constraints,
                                                                          tokenizer: Tokenizer) -> None:
    assert constraints.json_schema("true").allowed().shape == (tokenizer.vocab_size,)


UNUSABLE = {
    "no JSON": "{",
    "nothing": "",
    "a list": "[]",
    "an unknown type": '{"type": "foo"}',
    "a keyword that is not supported": '{"type": "string", "contentEncoding": 5, "not": {"type": "null"}}',
    "nothing is valid": "false",
    "itself": '{"$ref": "#"}',
    "a file": '{"$ref": "file:///etc/passwd"}',
    "the network": '{"$ref": "http://127.0.0.1:9/x.json"}',
    "a broken pattern": '{"type": "string", "pattern": "(("}',
    "too long": '{"const": "' + "x" * (1 << 20) + '"}',
    "a thousand levels": '{"type": "array", "items": ' * 1000 + "{}" + "}" * 1000,
    "deep parentheses": json.dumps({"type": "string", "pattern": "(" * 5000 + ")" * 5000}),
    "many properties": json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(20000)}}),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_schema_is_refused_by_name(constraints: Constraints, name: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        constraints.json_schema(UNUSABLE[name])
    assert error.value.field == "options.json_schema"
    assert "<state>" not in str(error.value) and len(str(error.value)) < 800


@pytest.mark.slow
def test_a_schema_whose_compilation_never_ends_is_refused(constraints: Constraints) -> None:
    """Intersections of patterns take exponential time, which no limit of llguidance counts."""
    schema = {"allOf": [{"type": "string", "pattern": f".*{n}.*"} for n in range(60)]}
    with pytest.raises(InvalidRequest) as error:
        constraints.json_schema(json.dumps(schema))
    assert error.value.field == "options.json_schema"


PATTERNS = ["^(a+)+$", "^(a|a)*b(a|b){200}$", "^.*a.{500}$", "^((a{1,1000}){1,1000}){1,1000}$",
            "^(\\p{L}|\\p{N}x){0,5000}\\p{L}{9999}$", "a?" * 5000]


@pytest.mark.parametrize("pattern", PATTERNS, ids=range(len(PATTERNS)))
def test_a_hostile_pattern_works_or_is_an_error(tokenizer: Tokenizer, constraints: Constraints, pattern: str) -> None:
    """Derivatives instead of backtracking: there is no catastrophic text, only a state that is too large."""
    try:
        constraint = constraints.json_schema(json.dumps({"type": "string", "pattern": pattern}))
        constraint.advance(tokenizer.encode('"', add_special=False, parse_special=False))
        for token in tokenizer.encode("a" * 200, add_special=False, parse_special=False):
            if not constraint.allowed()[token]:
                break
            constraint.advance([token])
    except InvalidRequest as error:
        assert error.field == "options.json_schema"
