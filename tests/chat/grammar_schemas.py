"""Schemas for the grammar tests: shapes of the JSON-Schema test suite by hand, and random compositions of them."""

import random
from typing import Any

LEAVES: list[Any] = [
    {"type": "string"},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "maxLength": 0},
    {"type": "string", "pattern": "^[A-Z]{2,3}-[0-9]+$"},
    {"type": "string", "pattern": "ab?[0-9]"},
    {"type": "string", "pattern": "^a|b$"},
    {"type": "string", "pattern": '^(x|y/z)[^"<]?$'},
    {"type": "string", "pattern": r"^\d{3}\.\w$"},
    {"type": "string", "pattern": "^[a-z]*$", "minLength": 1, "maxLength": 4},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "duration"},
    {"type": "string", "format": "email"},
    {"type": "string", "format": "hostname"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "ipv6"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "uri"},
    {"type": "integer"},
    {"type": "integer", "minimum": 0, "maximum": 100},
    {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3},
    {"type": "integer", "multipleOf": 7, "minimum": 0},
    {"type": "integer", "minimum": 1_000_000_000},
    {"type": "number"},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "multipleOf": 0.5},
    {"type": "boolean"},
    {"type": "null"},
    {"type": ["string", "null"]},
    {"type": ["integer", "boolean", "null"]},
    {"enum": ["red", "green", "blue"]},
    {"enum": ["a", 1, None, True, {"k": [1, 2]}, [], 1.5]},
    {"enum": ['quote " and \\ and </', "line\nbreak", "é漢🦀", "", "｜DSML｜"]},
    {"type": "string", "enum": ["a", "ab", "abc"]},
    {"const": "fixed"},
    {"const": {"a": 1}},
    {"const": None},
    {"title": "Any", "description": "no type", "default": 3, "examples": [1]},
    {},
]
WHOLE: list[Any] = [
    {"type": "object"},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 3},
    {"type": "object", "patternProperties": {"^s_": {"type": "string"}, "^i_": {"type": "integer"}}},
    {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "null"}}, "additionalProperties": False},
    {"type": "object", "required": ["a", "b"], "additionalProperties": {"type": "integer"}},
    {"type": "array"},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": {"type": "null"}},
    {"type": "array", "items": False},
    {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 3},
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "minimum": 5}]},
    {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "integer"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "b"}, "y": {"type": "string"}}, "required": ["kind"]},
        ]
    },
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    },
    {"minimum": 3},
    {"maxLength": 2},
    {"maxItems": 1},
    {"required": ["a"]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer", "minimum": 1}}},
    {"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"enum": [1, 2]}}},
    {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["value"],
        "additionalProperties": False,
    },
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 4},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
                },
                "required": ["name"],
                "additionalProperties": False,
            }
        },
    },
    {
        "type": "object",
        "properties": {
            "a": {"type": "string", "maxLength": 3},
            "b": {"$ref": "#/properties/a"},
            "$ref": {"type": "integer"},
            "enum": {"type": "null"},
        },
        "required": ["b", "$ref"],
        "additionalProperties": False,
    },
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.org/x", "type": "boolean"},
    True,
]


def schemas(count: int, seed: int) -> list[Any]:
    """The first ``count``: all by hand, then compositions."""
    rng = random.Random(seed)
    found = LEAVES + WHOLE
    return found[:count] + [composed(rng, depth=rng.choice((1, 1, 2))) for _ in range(count - len(found))]


def composed(rng: random.Random, depth: int) -> Any:
    if depth == 0:
        return rng.choice(LEAVES)
    match rng.choice(("object", "object", "object", "array", "anyOf", "reference")):
        case "object":
            names = rng.sample(
                ["a", "b", "name", "long name", "é", "x-y", "id", "id2", "kind", "$x"], rng.randint(1, 4)
            )
            return {
                "type": "object",
                "properties": {name: composed(rng, depth - 1) for name in names},
                "required": rng.sample(names, rng.randint(0, len(names))),
                **({"additionalProperties": False} if rng.random() < 0.8 else {}),
            }
        case "array":
            least = rng.randint(0, 2)
            return {
                "type": "array",
                "items": composed(rng, depth - 1),
                "minItems": least,
                "maxItems": least + rng.randint(0, 2),
            }
        case "anyOf":
            return {"anyOf": [composed(rng, depth - 1), rng.choice(LEAVES)]}
    name = f"d{rng.randrange(10**9)}"
    # An absolute reference works wherever the part ends up only if it carries its own name.
    return {"$id": f"https://example.org/{name}", "$ref": f"#/$defs/{name}", "$defs": {name: composed(rng, depth - 1)}}
