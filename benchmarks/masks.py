"""What holding an answer to a grammar costs per token: random walks under the masks of schemas and tool sets.

    python benchmarks/masks.py TOKENIZER [--walks 200]

TOKENIZER is a folder or file; for DeepSeek-V4's own vocabulary give the one of a checkpoint. Prints microseconds per
mask (with its unpacking to one bool a token), per forced-token query, and per compilation.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pelagos.chat.grammar import Constraint, JsonSchema, ToolCalls, compile_grammar
from pelagos.chat.grammar_state import ConstraintState
from pelagos.chat.tokenizer import Tokenizer

MOST_TOKENS = 300
ADDRESS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "gone"]}, "maxItems": 4},
    },
    "required": ["name", "age", "code", "tags"],
    "additionalProperties": False,
}
TREE: dict[str, Any] = {
    "$defs": {"node": {"type": "object", "properties": {"v": {"type": "number"}, "next": {"anyOf": [
        {"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v", "next"]}},
    "$ref": "#/$defs/node",
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": name, "strict": True, "parameters": ADDRESS}} for name in ("a", "b")]
CASES: dict[str, Constraint] = {
    "object": JsonSchema(schema=ADDRESS),
    "recursive": JsonSchema(schema=TREE),
    "tool calls": ToolCalls(tools=TOOLS, mode="required"),
}


def timed(work: Callable[[], Any], times: list[float]) -> Any:
    began = time.perf_counter()
    result = work()
    times.append(1e6 * (time.perf_counter() - began))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--walks", type=int, default=200, help="of each case")
    options = parser.parse_args()
    place = options.tokenizer
    tokenizer = Tokenizer.from_file(place) if place.is_file() else Tokenizer.from_folder(place)
    rng = random.Random(0)
    print(f"{tokenizer.vocab_size} ids; microseconds: median, mean, 99 %")
    for name, constraint in CASES.items():
        masks, forced, compiled = list[float](), list[float](), list[float]()
        for _ in range(options.walks):
            grammar = timed(lambda c=constraint: compile_grammar(c, tokenizer), compiled)
            state = ConstraintState(grammar, thinking=False)
            for _ in range(MOST_TOKENS):
                mask = timed(lambda s=state: s.mask(tokenizer.vocab_size), masks)
                token = rng.choice(mask.nonzero().flatten().tolist())
                state.observe(token)
                if token in tokenizer.stop_ids or state.is_finished:
                    break
                for token in timed(state.forced, forced):
                    state.observe(token)
                if state.is_finished:
                    break
        for kind, times in (("mask", masks), ("forced", forced), ("compile", compiled)):
            times.sort()
            figures = statistics.median(times), statistics.mean(times), times[int(0.99 * len(times))]
            print(f"{name:12} {kind:8} {' '.join(f'{x:8.0f}' for x in figures)}  ({len(times)})")


if __name__ == "__main__":
    main()
