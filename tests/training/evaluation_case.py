"""A vocabulary, a prepared folder, untrained models, and models that know their answers, for tests of evaluation."""

import dataclasses
import functools
import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pelagos.chat.tokenizer import Tokenizer
from pelagos.model.config import ModelConfig
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import autograd_ops, reference_ops
from pelagos.recipes.tiny import tiny
from pelagos.training.bpe import train_tokenizer
from pelagos.training.initialize import initialize
from pelagos.training.shards import ShardWriter
from pelagos.training.tasks import TASKS, Sample, encode
from pelagos.training.views import with_config

VOCAB_SIZE = 512
TEXT = "the sea is deep and wide but a ship goes over it by night with its lamps lit and nobody aboard asleep"
WORDS = TEXT.split(" ")


def documents(seed: int, num_documents: int, num_words: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, num_words))) + ".\n" for _ in range(num_documents)]


@functools.cache
def tokenizer() -> Tokenizer:
    """A vocabulary of 512 ids, those of ``tiny``, that knows common words and the words of prompts with tools."""
    schema = "".join(str(part) for task in ("calc-tool", "kv") for part in TASKS[task].phrases)
    common = documents(0, 200, 40) + [schema, "calculator expression parameters properties description string "] * 20
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(train_tokenizer(common, VOCAB_SIZE), encoding="utf-8")
        found = Tokenizer.from_file(path)
        _ = found.official  # the library reads the file too
        return found


def write_data(folder: Path, **sources: Sequence[str]) -> Path:
    """A prepared folder with the given documents as test split."""
    (folder / "tokens").mkdir(parents=True)
    for name, texts in sources.items():
        with ShardWriter(folder / "tokens", name, "test", VOCAB_SIZE) as shard:
            for text in texts:
                shard.add(tokenizer().encode(text), len(text.encode()))
    return folder


def config(**changes: Any) -> ModelConfig:
    return dataclasses.replace(tiny().model, **changes)


def untrained(model_config: ModelConfig | None = None, *, std: float = 0.3) -> Model:
    """A model on the functions for training, with large enough weights that its choices are spread."""
    model = Model(model_config or config(), autograd_ops())
    initialize(model, std=std, seed=5)
    return model


def exact(model: Model) -> Model:
    """The same weights on the functions for inference."""
    return with_config(model, model.config, reference_ops())


def exercise(name: str, seed: int, **knobs: Any) -> Sample:
    """Without thinking, so that the whole conversation is one text."""
    task = TASKS[name]
    return task.make(random.Random(seed), task.knobs(thinking_share=0.0, **knobs), tokenizer=tokenizer(), held_out=True)


@dataclass
class ParrotState:
    token_ids: list[int] = field(default_factory=list)

    def copy(self) -> "ParrotState":
        return ParrotState(list(self.token_ids))


class Parrot:
    """Goes on in the texts that it knows, and ends every other one. Counts the tokens that it reads."""

    def __init__(self, known: Iterable[Sequence[int]], max_positions: int = 1 << 20) -> None:
        self.known = [list(ids) for ids in known]
        self.config = SimpleNamespace(vocab_size=VOCAB_SIZE, max_positions=max_positions, eos_ids=(tokenizer().eos_id,))
        self.num_read = 0

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "Parrot":
        """It knows the right answers to these."""
        return cls([encode(sample, tokenizer())[0] for sample in samples])

    def new_state(self) -> ParrotState:
        return ParrotState()

    def step_batch(
        self, token_ids: Sequence[Sequence[int]], states: Sequence[ParrotState], *, num_logits: int | None = None
    ) -> list[Tensor]:
        assert num_logits == 1
        rows = []
        for tokens, state in zip(token_ids, states, strict=True):
            assert tokens, "nothing to read"
            state.token_ids += tokens
            self.num_read += len(tokens)
            rows.append(self._row(state.token_ids))
        return rows

    def _row(self, read: list[int]) -> Tensor:
        here = len(read)
        following = [text[here] for text in self.known if text[:here] == read and len(text) > here]
        row = torch.zeros(1, VOCAB_SIZE)
        row[0, following[0] if following else tokenizer().eos_id] = 1.0
        return row
