"""JSON schemas before they become grammars: bounds, what a grammar cannot promise, and why one was refused.

A grammar accepts a subset of what its schema accepts (fixed order of properties, few escapes) and never more. The
library refuses most keywords that would break this. The rest is refused here, and so is whatever costs the library
unbounded time, memory or stack.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, TypeAlias
from urllib.parse import unquote

from pelagos.common.errors import UsageError

Schema: TypeAlias = Mapping[str, Any] | bool

MAX_SCHEMA_CHARS = 1 << 18
MAX_DEPTH = 64
# The library walks references recursively. 3,000 levels fit in a stack of 8 MB, 6,000 end the process.
MAX_REFERENCE_DEPTH = 1000
# A multiple is matched digit by digit with one state for each remainder: 10**5 take 90 ms, 10**8 take 30 s and 3 GB.
MAX_MULTIPLE = 100_000

# Lets a model indent, and not write white space for ever.
OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}", "lenient": False, "coerce_one_of": False}
LENIENT = {**OPTIONS, "lenient": True}


def check_schema(place: str, schema: object) -> str:
    """The JSON text of a schema within bounds. Raises UsageError that begins with ``place``, the field it came in."""
    if not isinstance(schema, Mapping | bool):
        raise UsageError(f"{place} must be a JSON schema, an object or a boolean, not {type(schema).__name__}")
    _check_depth(place, schema)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, default=_plain)
        text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise UsageError(f"{place} is not JSON: {error}") from error
    if len(text) > MAX_SCHEMA_CHARS:
        raise UsageError(f"{place} has {len(text)} characters as JSON, at most {MAX_SCHEMA_CHARS} are taken")
    _check_references(place, schema)
    _check_multiples(place, schema)
    for where, node in nodes(schema):
        if "x-guidance" in node:
            raise UsageError(f"{place} has x-guidance at {where}, which is not a keyword of JSON Schema")
    return text


def check_exact(place: str, schema: Schema) -> None:
    """Refuse what the library takes without keeping the promise. Raises UsageError.

    Keys that only additionalProperties or patternProperties allow may repeat, so they do not count as many.
    """
    for where, node in nodes(schema):
        least, required = node.get("minProperties"), node.get("required")
        num_required = len(required) if isinstance(required, list) else 0
        if isinstance(least, int | float) and least > num_required + 1:
            raise UsageError(
                f"{place} has minProperties {least} at {where}, which a grammar cannot enforce: it must be at most one "
                f"above the number of required properties there, {num_required}"
            )


def refusal(place: str, schema: Schema, reason: str) -> UsageError:
    """The library's ``reason`` for refusing ``schema`` in one sentence, with the place of a keyword it names."""
    unknown = re.search(r"Unimplemented keys: \[(.*?)\]", reason)
    keywords = re.findall(r'"([^"]+)"', unknown[1]) if unknown else []
    if "min/maxProperties" in reason:
        keywords = ["minProperties", "maxProperties"]
    elif "oneOf constraints" in reason:
        keywords = ["oneOf"]
    found = [f"{key} at {where}" for where, node in nodes(schema) for key in keywords if key in node]
    if found:
        return UsageError(f"{place} has {', '.join(found[:4])}, which a grammar cannot enforce{_detail(reason)}")
    return UsageError(f"{place} cannot be made a grammar: {one_line(reason)}")


def one_line(reason: str) -> str:
    """The library's message without its drawing of the place and its lists, at most 300 characters."""
    head = reason.split("; following special tokens")[0].split("\n<state>")[0]
    lines = [line for line in head.splitlines() if line.strip(" ^") and not re.match(r"\s+\d+ \|", line)]
    return " ".join(" ".join(lines).split())[:300]


def nodes(schema: object, where: str = "#") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object in a checked schema with its JSON pointer. Data in enum and const is not told from schemas."""
    if isinstance(schema, Mapping):
        yield where, schema
        for key, value in schema.items():
            yield from nodes(value, f"{where}/{escape(str(key))}")
    elif isinstance(schema, list | tuple):
        for position, value in enumerate(schema):
            yield from nodes(value, f"{where}/{position}")


def escape(name: str) -> str:
    """A key as part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def resolve(reference: str, root: Schema) -> Any:
    """What a local reference such as ``#/$defs/a`` points to. Raises KeyError if that is nothing."""
    if reference != "#" and not reference.startswith("#/"):
        raise KeyError(reference)
    found: Any = root
    for part in unquote(reference).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list | tuple) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping) and name in found:
            found = found[name]
        else:
            raise KeyError(reference)
    return found


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no JSON")


def _detail(reason: str) -> str:
    known = {
        "min/maxProperties": " unless all of the properties there are required",
        "oneOf": " unless its branches clearly exclude each other (anyOf may do)",
    }
    return next((text for key, text in known.items() if key in reason), "")


def _check_depth(place: str, schema: object) -> None:
    """Level by level, so that no input is too deep for the check itself."""
    level = [schema]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise UsageError(f"{place} is nested deeper than {MAX_DEPTH} levels")


def _children(node: object) -> list[Any]:
    inner = list(node.values()) if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else []
    return [child for child in inner if isinstance(child, Mapping | list | tuple)]


def _depth(schema: object) -> int:
    return 1 + max(map(_depth, _children(schema)), default=0)


def _check_references(place: str, schema: Schema) -> None:
    """Bound the longest way through references by the depth of everything that is referred to."""
    targets = {node["$ref"] for _, node in nodes(schema) if isinstance(node.get("$ref"), str)}
    total = _depth(schema)
    for target in targets:
        try:
            total += _depth(resolve(target, schema))
        except KeyError:
            continue  # the library says what is wrong with it
    if total > MAX_REFERENCE_DEPTH:
        raise UsageError(
            f"{place} has {len(targets)} different $ref targets, together {total} levels deep; at most "
            f"{MAX_REFERENCE_DEPTH} levels are taken"
        )


def _check_multiples(place: str, schema: Schema) -> None:
    given = [node["multipleOf"] for _, node in nodes(schema) if _positive(node.get("multipleOf"))]
    found = [Decimal(str(value)).normalize() for value in given]
    powers = [int(value.as_tuple().exponent) for value in found]
    if any(abs(power) > 9 for power in powers):
        raise UsageError(f"{place} has a multipleOf with more than 9 decimals or final zeros")
    unit = Decimal(1).scaleb(min(0, *powers, 0))
    if math.lcm(*(int(value / unit) for value in found)) > MAX_MULTIPLE:
        raise UsageError(
            f"{place} has multipleOf values whose least common multiple is above {MAX_MULTIPLE} units of their last "
            "decimal place"
        )


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
