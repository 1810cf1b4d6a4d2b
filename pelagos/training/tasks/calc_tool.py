"""calc-tool: arithmetic by calls of the calculator, one for each sum of the question, and the results as the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Step
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.sample import Call
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.tools import run_tool
from pelagos.training.tasks.words import Phrases, is_held_out, may_train

OPERATORS = {"+": "plus", "-": "minus", "*": "times"}

ASK = Phrases(
    training=(
        "What is {what}?",
        "Compute {what}.",
        "How much is {what}?",
        "Calculate {what} for me.",
        "I need the result of {what}.",
        "Please work out {what}.",
        "{what} = ?",
        "Give me {what} as a number.",
        "{what}",
        "{what}?",
        "Solve {what}.",
        "What do I get for {what}?",
        "Tell me what {what} is.",
        "How many is {what}?",
        "The result of {what}, please.",
        "Can you do {what}?",
        "I want to know {what}.",
        "Use the calculator for {what}.",
        "What does {what} come to?",
        "Do the sum {what}.",
        "Let me have {what}.",
        "And {what}?",
    ),
    held_out=("Could you evaluate {what}?", "Find the value of {what}."),
)


@dataclass(frozen=True, kw_only=True)
class CalcToolKnobs(Knobs):
    num_calls: Span = setting((1, 3), help="sums of a question, each a call, all side by side", low=1, high=8)
    num_operations: Span = setting((1, 3), help="operations of a sum", low=1, high=8)
    num_questions: Span = setting((1, 1), help="questions of a conversation, one after the other", low=1, high=16)
    num_digits: Span = setting((1, 4), help="digits of the numbers in the question", low=1, high=9)


def build(draw: Draw, knobs: CalcToolKnobs) -> Item:
    """In training no number of four or more digits is from the test side; a test sum is whole from that side."""
    exchanges: list[Exchange] = []
    keys: list[str] = []
    for _ in range(draw.size(knobs.num_questions)):
        sums = [split_sum(draw, knobs) for _ in range(draw.size(knobs.num_calls))]
        keys = [asked for asked, _, _ in sums]
        results = tuple(result for _, _, result in sums)
        calls = tuple(Call(name="calculator", arguments={"expression": expression}) for _, expression, _ in sums)
        reasoning = f"I compute {_joined([expression for _, expression, _ in sums])}."
        exchanges.append(
            Exchange(
                question=draw.question(ASK).format(what=_joined(keys)),
                answer=_joined(results),
                reasoning=f"The result is {_joined(results)}.",
                steps=(Step(calls=calls, results=results, reasoning=reasoning),),
            )
        )
    return Item(exchanges=tuple(exchanges), grader="calls", tools=("calculator",), metadata={"keys": keys})


def _joined(parts: Sequence[str]) -> str:
    """``1``, ``1 and 2``, ``1, 2 and 3``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def split_sum(draw: Draw, knobs: CalcToolKnobs) -> tuple[str, str, str]:
    """A sum as it is asked, as it is computed, and its result, all from the draw's side of the split."""
    while True:
        asked, expression = _sum(draw, knobs, draw.size(knobs.num_operations))
        result = run_tool("calculator", {"expression": expression})
        if is_held_out(asked) == draw.held_out and (draw.held_out or may_train(int(result))):
            return asked, expression, result


def _sum(draw: Draw, knobs: CalcToolKnobs, num_operations: int) -> tuple[str, str]:
    """Operations from left to right, now and then with brackets around what stands so far."""
    expression = str(draw.number(draw.size(knobs.num_digits)))
    for i in range(num_operations):
        left = f"({expression})" if i > 0 and draw.rng.random() < 0.3 else expression
        expression = f"{left} {draw.rng.choice(list(OPERATORS))} {draw.number(draw.size(knobs.num_digits))}"
    if draw.rng.random() < 0.75:
        return expression, expression
    return " ".join(OPERATORS.get(part, part) for part in expression.split(" ")), expression


CALC_TOOL = Task(
    name="calc-tool",
    summary="arithmetic with a calculator tool",
    knobs=CalcToolKnobs,
    build=build,
    phrases=(ASK,),
    kinds=("chat",),
)
