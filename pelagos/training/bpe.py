"""Training a small vocabulary of DeepSeek-V4's kind: a byte-level BPE with all of its special tokens of text.

It differs from the official one in size, in that every digit is a token of its own (numbers and keys stay learnable for
a small model), and in that the special tokens have the last 64 ids. Where a special token stands is found by its
spelling, here as there.
"""

from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from pelagos.chat.tokenizer import (
    ASSISTANT,
    BOS,
    DSML,
    EOS,
    LATEST_REMINDER,
    THINK_END,
    THINK_START,
    USER,
)
from pelagos.common.errors import UsageError

NUM_RESERVED = 64
NUM_BYTES = 256
MIN_VOCAB_SIZE = NUM_BYTES + NUM_RESERVED

PAD = "<｜▁pad▁｜>"
FIM_HOLE = "<｜fim▁hole｜>"
FIM_BEGIN = "<｜fim▁begin｜>"
FIM_END = "<｜fim▁end｜>"

# The special tokens of the official vocabulary in the order of their ids, without placeholders and those for images.
SPECIAL_TOKENS: tuple[str, ...] = (
    BOS,
    EOS,
    PAD,
    FIM_HOLE,
    FIM_BEGIN,
    FIM_END,
    USER,
    ASSISTANT,
    "<|EOT|>",
    *(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end")),
    *(f"<｜tool▁{name}｜>" for name in ("outputs▁begin", "outputs▁end", "output▁begin", "output▁end", "sep")),
    *(f"<｜{side}▁of▁{what}｜>" for what in ("repo▁name", "file▁name", "file") for side in ("begin", "end")),
    THINK_START,
    THINK_END,
    DSML,
    "<｜begin▁sys｜>",
    "<｜end▁sys｜>",
    LATEST_REMINDER,
    *(f"<｜{name}｜>" for name in ("action", "query", "authority", "domain", "task", "political", "entity", "title")),
    *(f"<｜{name}｜>" for name in ("safety", "answer", "search")),
    "<dsml:",
    "</dsml:",
    *(f"<｜{name}｜>" for name in ("search▁begin", "search▁end", "extracted_url", "read_url", "end_of_query")),
)
PLACEHOLDERS = tuple(f"<｜place▁holder▁no▁{n}｜>" for n in range(NUM_RESERVED - len(SPECIAL_TOKENS)))

# The official cuts, but for the first: digits one by one instead of up to three.
DIGIT = r"\p{N}"
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
WORD = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> str:
    """The text of a tokenizer.json with ``vocab_size`` ids, learnt from ``texts``; the same for the same texts.

    Ids 0 to ``vocab_size - 65`` are bytes and merges, then come SPECIAL_TOKENS and PLACEHOLDERS.
    Raises UsageError if the texts are too small to learn that many merges from.
    """
    assert vocab_size >= MIN_VOCAB_SIZE, f"vocab_size must be at least {MIN_VOCAB_SIZE}"
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in (DIGIT, CJK, WORD)),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_RESERVED,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    if library.get_vocab_size() < vocab_size - NUM_RESERVED:
        largest = library.get_vocab_size() + NUM_RESERVED
        raise UsageError(f"vocab_size must be at most {largest} for this text, which has no more to merge")
    library.add_tokens([AddedToken(text, normalized=False) for text in SPECIAL_TOKENS + PLACEHOLDERS])
    assert library.token_to_id(PLACEHOLDERS[-1]) == vocab_size - 1
    return str(library.to_str(pretty=True))
