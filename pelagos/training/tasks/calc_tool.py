"""calc-tool: arithmetic by calls of the calculator, one operation a call, and the result as the answer."""

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
    num_calls: Span = setting((1, 3), help="operations, each a call on the result of the one before", low=1, high=8)
    num_questions: Span = setting((1, 1), help="questions of a conversation, one after the other", low=1, high=16)
    num_digits: Span = setting((1, 4), help="digits of the numbers in the question", low=1, high=9)


def build(draw: Draw, knobs: CalcToolKnobs) -> Item:
    """In training no number of four or more digits is from the test side; a test question is whole from that side."""
    asked = [_split_question(draw, knobs) for _ in range(draw.size(knobs.num_questions))]
    exchanges = tuple(
        Exchange(
            question=draw.question(ASK).format(what=what),
            answer=(answer := steps[-1].results[0]),
            reasoning=f"The result is {answer}.",
            steps=tuple(steps),
        )
        for what, steps in asked
    )
    return Item(exchanges=exchanges, grader="calls", tools=("calculator",), metadata={"keys": [asked[-1][0]]})


def _split_question(draw: Draw, knobs: CalcToolKnobs) -> tuple[str, list[Step]]:
    num_calls = draw.size(knobs.num_calls)
    while True:
        what, steps = _question(draw, knobs, num_calls)
        numbers = [int(result) for step in steps for result in step.results]
        if is_held_out(what) == draw.held_out and (draw.held_out or all(map(may_train, numbers))):
            return what, steps


def _question(draw: Draw, knobs: CalcToolKnobs, num_calls: int) -> tuple[str, list[Step]]:
    number = draw.number(draw.size(knobs.num_digits))
    asked = result = str(number)
    in_words = draw.rng.random() < 0.25
    steps = []
    for i in range(num_calls):
        operator = draw.rng.choice(list(OPERATORS))
        other = draw.number(draw.size(knobs.num_digits))
        left = f"({asked})" if i > 0 and operator == "*" else asked
        asked = f"{left} {OPERATORS[operator] if in_words and num_calls == 1 else operator} {other}"
        expression = f"{result} {operator} {other}"
        call = Call(name="calculator", arguments={"expression": expression})
        result = run_tool(call.name, call.arguments)
        steps.append(Step(calls=(call,), results=(result,), reasoning=f"I compute {expression}."))
    return asked, steps


CALC_TOOL = Task(
    name="calc-tool",
    summary="arithmetic with a calculator tool",
    knobs=CalcToolKnobs,
    build=build,
    phrases=(ASK,),
    kinds=("chat",),
)
