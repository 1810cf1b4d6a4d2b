"""code-recall: a module of many functions; write a call of one with its arguments in the right order."""

from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

MAX_VALUE = 99
OPERATORS = ("+", "-", "*")

ASK = Phrases(
    training=(
        "Write the call of {name} with {values}.",
        "Call {name} with {values}.",
        "How do you call {name} with {values}?",
        "Complete the call of {name}: {values}.",
        "Use {name} with {values}, arguments by position.",
        "Give the call of {name} for {values}.",
        "Show a call of {name} where {values}.",
        "With {values}, what is the call of {name}?",
    ),
    held_out=("Invoke {name} given {values}.", "Turn this into a call of {name}: {values}."),
)


@dataclass(frozen=True, kw_only=True)
class CodeRecallKnobs(Knobs):
    num_functions: Span = setting((2, 16), help="functions of the module", low=1, high=4096)
    num_parameters: Span = setting((2, 4), help="parameters of a function", low=1, high=6)


def build(draw: Draw, knobs: CodeRecallKnobs) -> Item:
    names = [key.replace(" ", "_") for key in draw.distinct(draw.size(knobs.num_functions), (2, 2))]
    functions = {name: draw.distinct(draw.size(knobs.num_parameters)) for name in names}
    name = draw.rng.choice(names)
    parameters = functions[name]
    values = {parameter: str(draw.rng.randint(0, MAX_VALUE)) for parameter in parameters}
    given = ", ".join(f"{p} = {values[p]}" for p in draw.rng.sample(parameters, len(parameters)))
    exchange = Exchange(
        question=draw.phrase(ASK).format(name=name, values=given),
        answer=f"{name}({', '.join(values[p] for p in parameters)})",
        reasoning=f"The definition is def {name}({', '.join(parameters)}).",
        cue=f"# {given}\nresult_of_{name} =",
    )
    module = "\n\n\n".join(_function(draw, name, parameters) for name, parameters in functions.items())
    return Item(
        pieces=(Piece(text=module, depth=draw.depth),),
        exchanges=(exchange,),
        grader="code",
        metadata={"keys": [name], "num_functions": len(names)},
    )


def _function(draw: Draw, name: str, parameters: list[str]) -> str:
    result = f" {draw.rng.choice(OPERATORS)} ".join(draw.rng.sample(parameters, len(parameters)))
    return f"def {name}({', '.join(parameters)}):\n    return {result}"


CODE_RECALL = Task(
    name="code-recall",
    summary="the order of arguments of a function in a module",
    knobs=CodeRecallKnobs,
    build=build,
    phrases=(ASK,),
)
