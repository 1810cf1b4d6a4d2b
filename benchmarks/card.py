"""Figures of a model's card: graded exercises in the format that ships, answered greedily by exact inference.

    python benchmarks/card.py MODEL --data DATA [--samples 40] [--out FILE.json]

DATA is a folder of `pelagos train prepare`. Every task is asked with words and templates of the held-out side; the
look-ups also with those that training asks for, and tool calls also with the grammar on. "kv N" are N pairs in a list
that fills a text of the given length. "drafts" is how many of the tokens that multi-token prediction guesses in the
engine are right, where the model goes on in held-out text and where it answers exercises.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pelagos.chat.grammar import ToolCalls, compile_grammar
from pelagos.chat.grammar_state import ConstraintState
from pelagos.chat.render import RenderedPrompt
from pelagos.chat.tokenizer import Tokenizer
from pelagos.cli.options import use_threads
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Request
from pelagos.model.places import model_place
from pelagos.model.transformer import Model
from pelagos.training.data import open_shards
from pelagos.training.exercises import Writer, attempt_all, held_out_exercises, right
from pelagos.training.task_documents import Passages
from pelagos.training.tasks import TASKS, Sample, last_prompt
from pelagos.training.tasks.tools import SCHEMAS

MAX_TOKENS, ANSWER_TOKENS, SIDE_BY_SIDE = 1024, 400, 16
TEXT_TOKENS, CACHE_BYTES = 128, 50_000_000
PAIRS = ((4, None), (16, None), (4, 256), (4, 1024))


def pairs(tokenizer: Tokenizer, number: int, length: int | None, samples: int, *, held_out: bool) -> Iterator[Sample]:
    """Lists of ``number`` pairs of single words with one question each, within ``length`` tokens of filler."""
    knobs: dict[str, Any] = {"num_pairs": (number, number), "key_words": (1, 1), "value_words": (1, 1)}
    knobs |= {"num_queries": (1, 1), "chat_share": 1.0, "thinking_share": 0.0}
    if length is not None:
        knobs["target_tokens"] = (length, length)
    for i in range(samples):
        rng = random.Random(f"{number} {length} {i}")
        yield TASKS["kv"].make(rng, TASKS["kv"].knobs(**knobs), tokenizer=tokenizer, held_out=held_out)


def drafts(model: Model, tokenizer: Tokenizer, prompts: list[list[int]]) -> dict[str, float]:
    """Guessed tokens, one a step, that were those that the model then chose, greedily."""
    engine = Engine(model, EngineConfig(cache_bytes=CACHE_BYTES, draft_tokens=1))
    params = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, stop_ids=tuple(sorted(tokenizer.stop_ids)))
    for prompt in prompts:  # one after the other: many at once are not drafted for
        engine.generate([Request(prompt_ids=prompt, params=params)])
    return {"right": engine.stats().num_accepted, "of": engine.stats().num_drafted}


def with_grammar(model: Model, tokenizer: Tokenizer) -> Writer:
    """Answers by the engine, calls held to the official grammar, as a server writes them."""
    engine = Engine(model, EngineConfig(cache_bytes=CACHE_BYTES, draft_tokens=0))

    def write(turns: Sequence[tuple[Sample, RenderedPrompt, int]]) -> list[list[int]]:
        requests = []
        for sample, prompt, max_tokens in turns:
            grammar = compile_grammar(ToolCalls(tools=[SCHEMAS[name] for name in sample.tools]), tokenizer)
            params = SamplingParams(temperature=0, max_tokens=max_tokens, stop_ids=tuple(sorted(tokenizer.stop_ids)))
            state = ConstraintState(grammar, thinking=prompt.thinking)
            requests.append(Request(prompt_ids=prompt.token_ids, params=params, constraint=state))
        return [[token.token_id for token in done.answers[0].tokens] for done in engine.generate(requests)]

    return write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    use_threads(None)
    folder = Path(model_place(options.model))
    model, tokenizer = Model.load(folder), Tokenizer.from_folder(folder)
    haystack = Passages(list(open_shards(options.data, "test").values()), tokenizer)
    results: dict[str, dict[str, float]] = {}

    def measure(name: str, samples: list[Sample], write: Writer | None = None) -> None:
        began = time.perf_counter()
        attempts = list(
            attempt_all(model, tokenizer, samples, answer_tokens=ANSWER_TOKENS, side_by_side=SIDE_BY_SIDE, write=write)
        )
        share = right(attempts)
        calls = [attempt.calls for attempt in attempts]
        results[name] = {"right": share.num_right, "of": share.num_all, "calls": sum(c.num_all for c in calls)}
        results[name]["valid_calls"] = sum(c.num_right for c in calls)
        print(f"{name:32} {share.num_right:3}/{share.num_all:<3} {time.perf_counter() - began:6.1f} s", flush=True)

    for number, length in PAIRS:
        for held_out in (False, True):
            side = "words never asked for" if held_out else "words of training"
            name = f"kv {number}, {length or 'list alone'}, {side}"
            measure(name, list(pairs(tokenizer, number, length, options.samples, held_out=held_out)))
    for task in TASKS:
        texts = {"haystack": haystack, "glosses": None}
        exercises = held_out_exercises(
            task, options.samples, tokenizer=tokenizer, max_tokens=MAX_TOKENS, seed=0, **texts
        )
        samples = list(exercises)
        measure(task, samples)
        if samples[0].tools:
            measure(f"{task}, grammar on", samples, with_grammar(model, tokenizer))
    texts = [tokenizer.encode(haystack(random.Random(i)))[:TEXT_TOKENS] for i in range(options.samples)]
    told = [
        last_prompt(sample, tokenizer).token_ids for sample in pairs(tokenizer, 8, 256, options.samples, held_out=False)
    ]
    for name, prompts in (("drafts, held-out text", texts), ("drafts, kv 8, 256, words of training", told)):
        results[name] = drafts(model, tokenizer, [prompt for prompt in prompts if prompt])
        print(f"{name:32} {results[name]['right']:3}/{results[name]['of']:<3}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
