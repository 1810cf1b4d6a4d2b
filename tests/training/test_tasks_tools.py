"""The calculator against Python's own arithmetic, what it refuses, and the key-value store."""

import ast
import json
import operator
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pelagos.training.tasks import run_tool
from pelagos.training.tasks.tools import MAX_ENTRIES, MAX_TEXT, SCHEMAS, calculate

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def by_python(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp):
        value: Fraction = OPERATORS[type(node.op)](by_python(node.left), by_python(node.right))
        return value
    if isinstance(node, ast.UnaryOp):
        return -by_python(node.operand)
    assert isinstance(node, ast.Constant)
    return Fraction(str(node.value))


expressions = st.recursive(
    st.integers(0, 9999).map(str) | st.sampled_from(["0.5", "12.25", "3.1"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", " - ", "*", " / "]), inner).map("".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=8,
)


@given(expressions)
def test_same_as_python(expression: str) -> None:
    assume(len(expression) <= 200)
    try:
        wanted = by_python(ast.parse(expression, mode="eval").body)
    except ZeroDivisionError:
        assert run_tool("calculator", {"expression": expression}) == "error: division by zero"
        return
    assert calculate(expression) == wanted


@given(st.text(max_size=60))
def test_any_text_gives_a_result_or_an_error(text: str) -> None:
    result = run_tool("calculator", {"expression": text})
    assert re.match(r"error: .|-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?$", result)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("10 - 3 - 2", "5"),
        ("8 / 4 / 2", "1"),
        ("7 / 2", "3.5"),
        ("1 / 3", "0.333333333333"),
        ("-5 * -(2 + 1)", "15"),
        (" 12\t*  12 ", "144"),
        ("99999999 * 99999999", "9999999800000001"),
        ("", "error: the expression ends too early"),
        ("2 +", "error: the expression ends too early"),
        ("2 2", "error: unexpected '2'"),
        ("(1 + 2", "error: a bracket is not closed"),
        ("1)", "error: unexpected ')'"),
        ("2 ** 3", "error: unexpected '*'"),
        ("__import__('os')", "error: unexpected '_'"),
        ("a + 1", "error: unexpected 'a'"),
        ("1e9", "error: unexpected 'e'"),
        ("٣", "error: unexpected '٣'"),
        ("1 / (2 - 2)", "error: division by zero"),
        ("(" * 30 + "1" + ")" * 30, "error: more than 20 brackets and signs inside each other"),
        ("1+" * 150 + "1", "error: the expression is longer than 200 characters"),
    ],
)
def test_calculator(expression: str, result: str) -> None:
    assert run_tool("calculator", {"expression": expression}) == result
    assert run_tool("calculator", json.dumps({"expression": expression})) == result


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("shell", {}, "error: there is no tool 'shell'; the tools are calculator, put, get"),
        ("calculator", "{broken", "error: the arguments are not JSON"),
        ("calculator", "[" * 100_000, "error: the arguments are not JSON"),
        ("calculator", "[1]", "error: calculator needs exactly the arguments expression"),
        ("calculator", {}, "error: calculator needs exactly the arguments expression"),
        ("calculator", {"expression": "1", "mode": "x"}, "error: calculator needs exactly the arguments expression"),
        ("calculator", {"expression": 12}, f"error: expression must be text of at most {MAX_TEXT} characters"),
        ("put", {"key": "a"}, "error: put needs exactly the arguments key, value"),
        ("put", {"key": "a", "value": "x" * 2000}, f"error: value must be text of at most {MAX_TEXT} characters"),
    ],
)
def test_wrong_calls_are_results(name: str, arguments: Any, message: str) -> None:
    assert run_tool(name, arguments, {}) == message


def test_store() -> None:
    store: dict[str, str] = {}
    assert run_tool("get", {"key": "a"}, store) == "not found"
    assert run_tool("put", {"key": "a", "value": "1"}, store) == "ok"
    assert run_tool("put", {"key": "a", "value": "2"}, store) == "ok"
    assert run_tool("get", '{"key": "a"}', store) == "2"
    assert run_tool("get", {"key": "a"}) == "not found", "no store: an empty one"
    store.update({str(i): "" for i in range(MAX_ENTRIES - 1)})
    assert (
        run_tool("put", {"key": "new", "value": "1"}, store) == f"error: the store is full: it holds {MAX_ENTRIES} keys"
    )
    assert run_tool("put", {"key": "a", "value": "3"}, store) == "ok", "what is there may change"


def test_schemas_name_their_arguments() -> None:
    assert list(SCHEMAS) == ["calculator", "put", "get"]
    for name, schema in SCHEMAS.items():
        assert schema["function"]["name"] == name
        assert list(schema["function"]["parameters"]["properties"]) == schema["function"]["parameters"]["required"]
