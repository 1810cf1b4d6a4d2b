"""The grammar of a block of DSML tool calls, as the official renderer writes them.

    \\n\\n<｜DSML｜tool_calls>
    <｜DSML｜invoke name="weather">
    <｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
    <｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜tool_calls>

｜DSML｜ is one token, which nothing in a value can be: a raw string goes on, over any markup, until ``</`` is followed
by that token. Parameters come in any order, none twice. A rule's parameter (the library calls it so: one bit for each
parameter that was given) keeps count.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pelagos.chat import grammar_library as library
from pelagos.chat.grammar_schema import Schema, check_exact, check_schema, nodes, refusal, resolve
from pelagos.chat.grammar_text import kinds, text_terminal
from pelagos.chat.render import Tool
from pelagos.common.errors import UsageError

MAX_TOOLS = 512
MAX_PARAMETERS = 64  # bits that the library keeps for a rule
MAX_GRAMMAR_CHARS = 1 << 20

ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "strict"}
COMMON_KEYS = {"$schema", "$id", "id", "$comment", "$defs", "definitions", "$anchor", "$ref"}
OBJECT_KEYS = {"type", "properties", "required", "additionalProperties"}
FREE_NAME = r'/[^"\\<> \x00-\x1f\x7f]{1,64}/'
ANY_TEXT = "/(?s:.*)/"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of a tool. ``open``: it takes others too. ``root`` is what references in them refer to."""

    place: str
    declared: Mapping[str, Schema]
    required: frozenset[str]
    open: bool
    root: Schema


def tool_calls_grammar(tools: Sequence[Tool], *, name: str | None, parallel: bool, mark_id: int) -> str:
    """Lark text of a whole block with calls of ``tools``, or of the one named ``name``.

    Raises UsageError that names the tool and the field for what is wrong, or, in a strict tool, cannot be enforced.
    """
    if not 0 < len(tools) <= MAX_TOOLS:
        raise UsageError(f"tools must be 1 to {MAX_TOOLS} tools, got {len(tools)}")
    functions = {}
    for position, tool in enumerate(tools):
        place = f"tools[{position}].function"
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            raise UsageError(f"{place} must be an object with name and parameters")
        _check_name(f"{place}.name", function.get("name"))
        if function["name"] in functions:
            raise UsageError(f"{place}.name {function['name']!r} is the name of another tool")
        functions[function["name"]] = (place, function)
    if name is not None and name not in functions:
        raise UsageError(f"name must be the name of one of the tools, not {name!r}")
    chosen = {name: functions[name]} if name is not None else functions
    mark = f"<[{mark_id}]>"
    calls = " | ".join(f"call{number}" for number in range(len(chosen)))
    lines = [
        f'start: "\\n\\n<" {mark} "tool_calls>\\n" {"call+" if parallel else "call"} "</" {mark} "tool_calls>"',
        f"call: {calls}",
    ]
    for number, (tool_name, (place, function)) in enumerate(chosen.items()):
        opening = _quoted(f'invoke name="{tool_name}">\n')
        lines.append(f'call{number}: "<" {mark} {opening} args{number}')
        lines += _arguments(number, place, function, mark)
    text = "\n".join(lines)
    if len(text) > MAX_GRAMMAR_CHARS:
        raise UsageError(f"tools make a grammar of {len(text)} characters, at most {MAX_GRAMMAR_CHARS} are taken")
    return text


def _arguments(number: int, place: str, function: Mapping[str, Any], mark: str) -> Iterator[str]:
    """The rules of one tool's arguments, with the end of the call."""
    strict = function.get("strict") is True
    parameters = _parameters(f"{place}.parameters", function.get("parameters"), strict)
    # Required ones have the lowest bits, so that one range of bits tells whether all are there.
    names = sorted(parameters.declared, key=lambda name: name not in parameters.required)
    close = f'"</" {mark} "invoke>\\n"'
    choices = [f"{close} %if is_ones([0:{len(parameters.required)}])" if parameters.required else close]
    given = f"given{number}" + ("::_" if names else "")
    rules: list[str] = []
    for bit, name in enumerate(names):
        rule = f"arg{number}_{bit}"
        choices.append(f"{rule} given{number}::set_bit({bit}) %if bit_clear({bit})")
        rules += _parameter(rule, name, parameters, strict, mark)
    if parameters.open:
        choices.append(f"other{number} {given}")
        rules += _other(number, names, mark)
    yield f"args{number}: given{number}" + ("::0x0" if names else "")
    yield f"{given}: " + "\n  | ".join(choices)
    yield from rules


def _parameter(rule: str, name: str, parameters: Parameters, strict: bool, mark: str) -> Iterator[str]:
    """The rules of one parameter: a string as it is, any other value as JSON."""
    text, value = _values(name, parameters, strict)
    forms = []
    if text is not None:
        yield f'{rule.upper()}: ({text}) "</"'
        forms.append(f'"\\"true\\">" {rule.upper()}')
    if value is not None:
        forms.append(f'"\\"false\\">" %json {value} "</"')
    start = _quoted(f'parameter name="{name}" string=')
    yield f'{rule}: "<" {mark} {start} ({" | ".join(forms)}) {mark} "parameter>\\n"'


def _other(number: int, names: Sequence[str], mark: str) -> Iterator[str]:
    """A parameter that the schema does not declare."""
    known = " | ".join(map(_quoted, names))
    name = f"({FREE_NAME} & ~({known}))" if known else FREE_NAME
    value = library.embedded_schema({"type": ["object", "array", "number", "boolean", "null"]})
    yield f'OTHER{number}: "parameter name=\\"" {name} "\\" string="'
    yield f'OTHERTEXT{number}: {ANY_TEXT} "</"'
    forms = f'("\\"true\\">" OTHERTEXT{number} | "\\"false\\">" %json {value} "</")'
    yield f'other{number}: "<" {mark} OTHER{number} {forms} {mark} "parameter>\\n"'


def _values(name: str, parameters: Parameters, strict: bool) -> tuple[str | None, str | None]:
    """What a parameter may hold: a terminal for its strings, JSON schema text for the rest; None for nothing.

    A strict tool's schema is enforced or refused. Another's is enforced without what the library does not know, or, if
    that is still refused, as far as its types go.
    """
    schema, root = parameters.declared[name], parameters.root
    found = kinds(schema, root)
    is_text, others = "string" in found or not found, sorted(found - {"string"}) or None
    types = others if "string" in found else None
    rest = _standalone(schema, root, types)
    reason = library.problem(library.json_source(_standalone(schema, root, None)))
    if not reason:
        text = text_terminal(schema, root) if is_text else None
        reason = library.problem(library.lark_source(f"start: TEXT\nTEXT: ({text})")) if text is not None else ""
        if not reason:
            return text, library.embedded_schema(rest) if others else None
    if strict:
        raise refusal(f"{parameters.place}.properties.{name}", schema, reason)
    if others and _is_wrong(library.embedded_schema(rest, lenient=True)):
        rest = {"type": others}
    return ANY_TEXT if is_text else None, library.embedded_schema(rest, lenient=True) if others else None


def _is_wrong(embedded: str) -> bool:
    return bool(library.problem(library.lark_source(f"start: %json {embedded}")))


def _standalone(schema: Schema, root: Schema, types: Sequence[str] | None) -> dict[str, Any]:
    """A part of ``root`` as a schema of its own, in which references still work; of ``types`` alone if given."""
    moved = _moved(schema)
    body = {"not": {}} if moved is False else {} if moved is True else moved
    if types is not None:
        body = {"allOf": [body, {"type": list(types)}]}
    if any("$ref" in node for _, node in nodes(schema)):
        body = {**body, "$defs": {"root": _moved(root)}}
    return dict(body)


def _moved(schema: Any) -> Any:
    """The schema with references to where ``_standalone`` puts what they refer to, without the name that it had."""
    if isinstance(schema, Mapping):
        return {key: _moved_reference(value) if key == "$ref" else _moved(value) for key, value in schema.items()}
    return list(map(_moved, schema)) if isinstance(schema, list | tuple) else schema


def _moved_reference(value: Any) -> Any:
    is_local = isinstance(value, str) and (value == "#" or value.startswith("#/"))
    return f"#/$defs/root{value[1:]}" if is_local else _moved(value)


def _parameters(place: str, schema: Any, strict: bool) -> Parameters:
    """What a tool's schema says of its parameters. Without a schema it has none."""
    if schema is None:
        return Parameters(place=place, declared={}, required=frozenset(), open=False, root={})
    check_schema(place, schema)
    if not isinstance(schema, Mapping):
        raise UsageError(f"{place} must be an object with properties, not {schema}")
    root = {key: value for key, value in schema.items() if key not in ("$id", "id")}
    node = _target(place, root)
    declared, required, others = node.get("properties", {}), node.get("required", []), node.get("additionalProperties")
    if not isinstance(declared, Mapping) or not isinstance(required, list | tuple):
        raise UsageError(f"{place} must have an object as properties and a list as required")
    unknown = sorted(node.keys() - OBJECT_KEYS - ANNOTATIONS - COMMON_KEYS)
    if strict:
        check_exact(place, root)
        _check_strict(place, node, unknown)
    missing = [name for name in required if name not in declared]
    declared = {**declared, **dict.fromkeys(missing, {} if others in (None, False) else others)}
    for name in declared:
        _check_name(f"{place}: the name of the property", name)
        if " " in name:  # the official parser ends the name there, and the arguments are no JSON
            raise UsageError(f"{place} has the property {name!r}: a parameter of a tool cannot have spaces in its name")
    lost = {name: target for name, schema in declared.items() if (target := _lost_reference(schema, root)) is not None}
    if strict and lost:
        name, target = next(iter(lost.items()))
        raise UsageError(f"{place}.properties.{name} has a $ref to {target!r}, which is not in {place}")
    declared = {**declared, **dict.fromkeys(lost, True)}  # any value: it cannot be known what was meant
    if len(declared) > MAX_PARAMETERS:
        declared, required, unknown = {}, [], ["properties"]
    is_open = bool(unknown) or bool(others) or ("properties" not in node and others is not False)
    return Parameters(
        place=place, declared=declared, required=frozenset(required), open=is_open and not strict, root=root
    )


def _check_strict(place: str, node: Mapping[str, Any], unknown: Sequence[str]) -> None:
    """Refuse what the grammar of arguments does not express. Parameters that are not declared are never written, which
    every additionalProperties allows."""
    if unknown:
        raise UsageError(f"{place} has {', '.join(unknown)} beside properties, which a strict tool cannot have there")
    if node.get("type", "object") != "object":
        raise UsageError(f'{place}.type must be "object", not {node["type"]!r}')
    missing = [name for name in node.get("required", []) if name not in node.get("properties", {})]
    if missing:
        raise UsageError(f"{place}.required has {missing[0]!r}, which is not in properties of the strict tool")
    num_declared = len(node.get("properties", {}))
    if num_declared > MAX_PARAMETERS:
        raise UsageError(f"{place} has {num_declared} properties, a strict tool may have {MAX_PARAMETERS}")


def _target(place: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema itself, or the one that it stands for."""
    node: Any = root
    for _ in range(MAX_PARAMETERS):
        if not isinstance(node, Mapping) or "$ref" not in node or "properties" in node:
            break
        try:
            node = resolve(str(node["$ref"]), root)
        except KeyError as error:
            raise UsageError(f"{place} has a $ref to {node['$ref']!r}, which is not in it") from error
    if not isinstance(node, Mapping):
        raise UsageError(f"{place} must be an object with properties, not {node!r}")
    return node


def _lost_reference(schema: Schema, root: Schema) -> str | None:
    """A $ref in a part of ``root`` that leads nowhere, directly or through another."""
    waiting: list[Any] = [schema]
    seen: set[str] = set()
    while waiting:
        for _, node in nodes(waiting.pop()):
            target = node.get("$ref")
            if not isinstance(target, str) or target in seen:
                continue
            seen.add(target)
            try:
                waiting.append(resolve(target, root))
            except KeyError:
                return target
    return None


def _check_name(place: str, name: object) -> None:
    """The official parser copies names into JSON as they are, up to the next quotation mark."""
    if not isinstance(name, str) or not re.fullmatch(r'[^"\\\x00-\x1f\x7f]{1,256}', name):
        raise UsageError(
            f"{place} must be 1 to 256 characters without quotation marks, backslashes and control characters, "
            f"not {str(name)[:80]!r}"
        )


def _quoted(text: str) -> str:
    """A literal of Lark."""
    return json.dumps(text, ensure_ascii=False)
