"""The two tools of the tool tasks: a calculator and a key-value store, for training text and for evaluation alike.

The calculator has a parser of its own: numbers, + - * / and brackets, nothing else, and bounded in length and depth.
"""

import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

MAX_EXPRESSION = 200  # characters
MAX_DEPTH = 20
MAX_ENTRIES = 1000
MAX_TEXT = 1000  # characters of a key or a value
NOT_FOUND = "not found"
TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?)|([-+*/()]))")


def _schema(name: str, description: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    function = {
        "name": name,
        "description": description,
        "parameters": {"type": "object", "properties": properties, "required": list(parameters)},
    }
    return {"type": "function", "function": function}


SCHEMAS: dict[str, dict[str, Any]] = {
    "calculator": _schema("calculator", "Computes + - * / and brackets.", expression="For example 12 * (3 + 4)"),
    "put": _schema("put", "Stores a value under a key.", key="Key", value="Value"),
    "get": _schema("get", "Gives the value stored under a key.", key="Key"),
}


def run_tool(name: str, arguments: str | Mapping[str, Any], store: dict[str, str] | None = None) -> str:
    """The result of a call as the model sees it; what is wrong with a call is a result too, ``error: ...``.

    ``arguments``: an object or its JSON text. ``store``: what ``put`` and ``get`` work on, one per conversation.
    """
    try:
        given = _read_arguments(name, arguments)
        if name == "calculator":
            return _show(calculate(given["expression"]))
        entries = {} if store is None else store
        if name == "put":
            if given["key"] not in entries and len(entries) >= MAX_ENTRIES:
                raise ValueError(f"the store is full: it holds {MAX_ENTRIES} keys")
            entries[given["key"]] = given["value"]
            return "ok"
        return entries.get(given["key"], NOT_FOUND)
    except ValueError as error:
        return f"error: {error}"


def calculate(expression: str) -> Fraction:
    """The exact value. Raises ValueError, in words for the model, for anything that is not plain arithmetic."""
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"the expression is longer than {MAX_EXPRESSION} characters")
    tokens = list(_tokens(expression))
    value, place = _sum(tokens, 0, 0)
    if place < len(tokens):
        raise ValueError(f"unexpected {tokens[place]!r}")
    return value


def _read_arguments(name: str, arguments: str | Mapping[str, Any]) -> dict[str, str]:
    if name not in SCHEMAS:
        raise ValueError(f"there is no tool {name!r}; the tools are {', '.join(SCHEMAS)}")
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    except (ValueError, RecursionError):
        raise ValueError("the arguments are not JSON") from None
    wanted = SCHEMAS[name]["function"]["parameters"]["required"]
    if not isinstance(given, dict) or sorted(map(str, given)) != sorted(wanted):
        raise ValueError(f"{name} needs exactly the arguments {', '.join(wanted)}")
    for key, value in given.items():
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise ValueError(f"{key} must be text of at most {MAX_TEXT} characters")
    return given


def _tokens(expression: str) -> Iterator[str]:
    place = 0
    text = expression.rstrip()
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"unexpected {text[place:].strip()[0]!r}")
        yield match[1] or match[2]
        place = match.end()


def _sum(tokens: list[str], place: int, depth: int) -> tuple[Fraction, int]:
    value, place = _product(tokens, place, depth)
    while place < len(tokens) and tokens[place] in "+-":
        operator = tokens[place]
        other, place = _product(tokens, place + 1, depth)
        value = value + other if operator == "+" else value - other
    return value, place


def _product(tokens: list[str], place: int, depth: int) -> tuple[Fraction, int]:
    value, place = _factor(tokens, place, depth)
    while place < len(tokens) and tokens[place] in "*/":
        operator = tokens[place]
        other, place = _factor(tokens, place + 1, depth)
        if operator == "/" and other == 0:
            raise ValueError("division by zero")
        value = value * other if operator == "*" else value / other
    return value, place


def _factor(tokens: list[str], place: int, depth: int) -> tuple[Fraction, int]:
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} brackets and signs inside each other")
    if place == len(tokens):
        raise ValueError("the expression ends too early")
    token = tokens[place]
    if token == "-":
        value, place = _factor(tokens, place + 1, depth + 1)
        return -value, place
    if token == "(":
        value, place = _sum(tokens, place + 1, depth + 1)
        if place == len(tokens) or tokens[place] != ")":
            raise ValueError("a bracket is not closed")
        return value, place + 1
    if not token[0].isdigit():
        raise ValueError(f"unexpected {token!r}")
    return Fraction(token), place + 1


def _show(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.12g}"
