"""The strings that a JSON schema accepts, as a Lark terminal over the bare text: without quotes and escapes.

Only for schemas that llguidance takes: what it refuses need not be refused again here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pelagos.chat import grammar_library as library
from pelagos.chat.grammar_schema import Schema, resolve

ALL_KINDS = frozenset({"string", "number", "object", "array", "boolean", "null"})

_YEAR_TO_DAY = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_GROUP = r"[0-9a-fA-F]{1,4}"

# Every text that one of these matches has the format; not the other way round (days past the 28th, "::" in IPv6).
FORMATS = {
    "date": _YEAR_TO_DAY,
    "time": _TIME,
    "date-time": f"{_YEAR_TO_DAY}[tT]{_TIME}",
    "duration": r"P([0-9]+W|[0-9]+D(T[0-9]+[HMS])?|[0-9]+[YM]|T[0-9]+[HMS])",
    "email": rf"[a-zA-Z0-9_+-]{{1,30}}(\.[a-zA-Z0-9_+-]{{1,30}})?@{_LABEL}(\.{_LABEL}){{1,2}}",
    "hostname": rf"{_LABEL}(\.{_LABEL}){{0,2}}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "ipv6": f"{_GROUP}(:{_GROUP}){{7}}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": rf"[a-zA-Z][a-zA-Z0-9+.-]*://{_LABEL}(\.{_LABEL})*(:[0-9]{{1,4}})?(/[a-zA-Z0-9._~-]*)*(\?[a-zA-Z0-9=&._~-]*)?",
}


def kinds(schema: Schema, root: Schema, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """The JSON types that may fit a checked schema (a whole number is a number); more than do, never fewer."""
    if isinstance(schema, bool):
        return ALL_KINDS if schema else frozenset()
    found = ALL_KINDS
    if "type" in schema:
        types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        found &= {"number" if name == "integer" else name for name in types}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        found &= set(map(_kind, values))
    for branches in _alternatives(schema):
        found &= frozenset().union(*(kinds(branch, root, seen) for branch in branches))
    for part, now_seen in _conjuncts(schema, root, seen):
        found &= kinds(part, root, now_seen)
    return found


def text_terminal(schema: Schema, root: Schema, seen: frozenset[str] = frozenset()) -> str | None:
    """A Lark expression of the strings that fit a checked schema; None if none does."""
    if "string" not in kinds(schema, root, seen):
        return None
    if isinstance(schema, bool):
        return _any_text(0, None)
    terms = []
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        terms.append(" | ".join(json.dumps(value, ensure_ascii=False) for value in values if isinstance(value, str)))
    if "minLength" in schema or "maxLength" in schema:
        terms.append(_any_text(int(schema.get("minLength", 0)), schema.get("maxLength")))
    if "pattern" in schema:
        terms.append(_search(schema["pattern"]))
    if schema.get("format") in FORMATS:
        terms.append(f"/{library.lark_pattern(FORMATS[schema['format']])}/")
    for branches in _alternatives(schema):
        texts = [text_terminal(branch, root, seen) for branch in branches]
        terms.append(" | ".join(text for text in texts if text is not None))
    for part, now_seen in _conjuncts(schema, root, seen):
        terms.append(text_terminal(part, root, now_seen) or "")
    if len(terms) == 1:
        return f"({terms[0]})"
    # A negation or intersection may match bytes that are not UTF-8; the first term keeps them out.
    return " & ".join(f"({term})" for term in terms) if terms else _any_text(0, None)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "number"
    return "object" if isinstance(value, Mapping) else "array"


def _alternatives(schema: Mapping[str, Any]) -> list[Sequence[Schema]]:
    return [schema[key] for key in ("anyOf", "oneOf") if key in schema]


def _conjuncts(schema: Mapping[str, Any], root: Schema, seen: frozenset[str]) -> list[tuple[Schema, frozenset[str]]]:
    """The further schemas that a value must fit; a reference that leads back to itself fits nothing new."""
    parts: list[tuple[Schema, frozenset[str]]] = [(part, seen) for part in schema.get("allOf", ())]
    reference = schema.get("$ref")
    if isinstance(reference, str):
        parts.append((False, seen) if reference in seen else (resolve(reference, root), seen | {reference}))
    return parts


def _any_text(least: int, most: float | None) -> str:
    if not least and most is None:
        return "/(?s:.*)/"
    return f"/(?s:.{{{least},{'' if most is None else int(most)}}})/"


def _search(pattern: str) -> str:
    """A JSON Schema pattern, which may match anywhere, as an expression for the whole text.

    ``^`` and ``$`` are understood at the ends of the pattern and of its top-level alternatives; elsewhere the library
    refuses them.
    """
    terms = []
    for branch in _branches(pattern):
        start = "" if branch.startswith("^") else "/(?s:.*)/ "
        at_end = re.search(r"(?<!\\)(\\\\)*\$$", branch) is not None
        middle = branch.removeprefix("^")
        middle = middle[:-1] if at_end else middle
        body = f"/(?:{library.lark_pattern(middle)})/" if middle else '""'
        terms.append(f"{start}{body}{'' if at_end else ' /(?s:.*)/'}")
    return " | ".join(terms)


def _branches(pattern: str) -> list[str]:
    """The alternatives of a regular expression, cut at ``|`` outside groups and classes."""
    branches, depth, in_class = [""], 0, False
    for piece in re.findall(r"\\.|.", pattern, re.DOTALL):
        if piece == "[":
            in_class = True
        elif piece == "]":
            in_class = False
        elif not in_class:
            depth += (piece == "(") - (piece == ")")
        if piece == "|" and depth == 0 and not in_class:
            branches.append("")
        else:
            branches[-1] += piece
    return branches
