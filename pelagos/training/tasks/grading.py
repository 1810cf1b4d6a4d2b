"""Right or wrong, by exact match: what a model wrote against what a sample asks for."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pelagos.chat.parse import ParsedMessage
from pelagos.training.tasks.sample import Call, Sample

CODE_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Grade:
    """``parts``: what was looked at and how each came out, such as ``answer`` and ``calls``."""

    correct: bool
    parts: dict[str, bool]


def grade(sample: Sample, output: str | ParsedMessage | Sequence[Mapping[str, Any]]) -> Grade:
    """Grade a model's output.

    ``output``: the text it wrote after ``last_prompt``, the parsed answer to it, or a whole conversation as a list of
    messages, which is what tool tasks need: their calls count too. Of the output for a plain text the first line
    counts, for the text goes on.
    """
    content, calls = _read(output)
    if sample.kind == "text":
        content = content.lstrip().split("\n", 1)[0]
    return GRADERS[sample.grader](sample, content.strip(), calls)


def expected_calls(sample: Sample) -> list[Call]:
    """The calls that the sample's assistant makes, in order."""
    return [call for turn in sample.turns for call in turn.calls]


def _read(output: str | ParsedMessage | Sequence[Mapping[str, Any]]) -> tuple[str, list[Call | None]]:
    """The last content and all calls; None stands for a call whose arguments are not an object."""
    if isinstance(output, str):
        return output, []
    if isinstance(output, ParsedMessage):
        return output.content, [_call(call.name, call.arguments) for call in output.tool_calls]
    said = [message for message in output if message["role"] == "assistant"]
    functions = [call["function"] for message in said for call in message.get("tool_calls", ())]
    content = said[-1]["content"] if said and not said[-1].get("tool_calls") else ""
    return content or "", [_call(function["name"], function["arguments"]) for function in functions]


def _call(name: str, arguments: str) -> Call | None:
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return Call(name=name, arguments=given) if isinstance(given, dict) else None


def _exact(sample: Sample, content: str, _: list[Call | None]) -> Grade:
    right = content == sample.answer
    return Grade(correct=right, parts={"answer": right})


def _first_words(sample: Sample, content: str, _: list[Call | None]) -> Grade:
    """The first words are right, and what follows, if anything, goes on in the text that they are the start of."""
    wanted, full, given = sample.answer.split(), sample.metadata["full"].split(), content.split()
    right = given[: len(wanted)] == wanted and given == full[: len(given)]
    return Grade(correct=right, parts={"answer": right})


def _code(sample: Sample, content: str, _: list[Call | None]) -> Grade:
    """Spaces do not count."""
    right = CODE_TOKEN.findall(content) == CODE_TOKEN.findall(sample.answer)
    return Grade(correct=right, parts={"answer": right})


def _calls_and_answer(sample: Sample, content: str, calls: list[Call | None]) -> Grade:
    parts = {"calls": calls == expected_calls(sample), "answer": content == sample.answer}
    return Grade(correct=all(parts.values()), parts=parts)


def _final_answer(sample: Sample, content: str, calls: list[Call | None]) -> Grade:
    """The answer decides; whether it was reached by the expected calls is told apart."""
    parts = {"calls": calls == expected_calls(sample), "answer": content == sample.answer}
    return Grade(correct=parts["answer"], parts=parts)


Grader: TypeAlias = Callable[[Sample, str, list[Call | None]], Grade]

GRADERS: dict[str, Grader] = {
    "exact": _exact,
    "first_words": _first_words,
    "code": _code,
    "calls": _calls_and_answer,
    "final": _final_answer,
}
