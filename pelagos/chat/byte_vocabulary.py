"""A vocabulary of single bytes and the marks of a chat, for models with random weights: nothing has to be learnt."""

from pathlib import Path

import tokenizers

from pelagos.chat.tokenizer import (
    ASSISTANT,
    BOS,
    DSML,
    EOS,
    FILE_NAME,
    LATEST_REMINDER,
    THINK_END,
    THINK_START,
    USER,
    Tokenizer,
)

# The first two have the ids that the preset tiny gives them.
MARKS = (
    *(BOS, EOS, USER, ASSISTANT, LATEST_REMINDER, THINK_START, THINK_END, DSML),
    *("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def write_byte_tokenizer(folder: Path) -> Tokenizer:
    """Write ``tokenizer.json`` into a folder: the marks, then the 256 bytes."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(MARKS) + 256,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[tokenizers.AddedToken(mark, normalized=False) for mark in MARKS],
        show_progress=False,
    )
    library.train_from_iterator([""], trainer)
    library.save(str(folder / FILE_NAME))
    return Tokenizer.from_folder(folder)
