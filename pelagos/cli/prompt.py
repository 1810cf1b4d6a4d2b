"""What a command's prompt options say, and the token ids they stand for."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pelagos.common.errors import UsageError

if TYPE_CHECKING:
    from pelagos.chat.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ReadyPrompt:
    """``thinking``: whether the answer starts with reasoning."""

    token_ids: list[int]
    thinking: bool


class GivenPrompt:
    """The prompt options, checked and read before a model is loaded.

    Raises UsageError unless exactly one of text, file ("-": standard input) and tokens is given, for a file that cannot
    be read, for ids that are no numbers, and for options that would have no effect.
    """

    def __init__(
        self, *, text: str | None, file: str | None, tokens: str | None, chat: bool, thinking: bool, effort: str | None
    ) -> None:
        if [text, file, tokens].count(None) != 2:
            raise UsageError("give exactly one of --prompt, --prompt-file and --prompt-tokens")
        if chat and tokens is not None:
            raise UsageError("--chat needs --prompt or --prompt-file: token ids are taken as they are")
        if not chat and (effort is not None or not thinking):
            raise UsageError("--effort and --no-thinking need --chat")
        self._token_ids = [] if tokens is None else _ids(tokens)
        self._text = text if file is None else _read(file)
        self._chat = chat
        self._thinking = thinking
        self._effort = effort

    def prepare(self, folder: Path, tokenizer: "Tokenizer | None") -> ReadyPrompt:
        """The prompt for the model in ``folder``.

        With ``chat`` the text is rendered as a user's turn, with the folder's table of effort levels. Otherwise it
        starts a new document: the start token comes before it. Raises UsageError for a text without a tokenizer, and
        for an unknown effort.
        """
        if self._text is None:
            return ReadyPrompt(token_ids=self._token_ids, thinking=False)
        if tokenizer is None:
            raise UsageError(f"{folder} has no tokenizer.json: give --prompt-tokens in place of a text")
        if not self._chat:
            return ReadyPrompt(token_ids=[tokenizer.bos_id, *tokenizer.encode(self._text)], thinking=False)
        from pelagos.chat.effort import load_effort_levels
        from pelagos.chat.render import render

        rendered = render(
            [{"role": "user", "content": self._text}],
            tokenizer,
            thinking=self._thinking,
            effort=self._effort or "high",
            levels=load_effort_levels(folder),
        )
        return ReadyPrompt(token_ids=rendered.token_ids, thinking=rendered.thinking)


def _ids(text: str) -> list[int]:
    ids = []
    for place, word in enumerate(map(str.strip, text.split(","))):
        if not (word.isascii() and word.isdigit() and len(word) < 20):
            raise UsageError(f"--prompt-tokens must be whole numbers with commas, got {word[:40]!r} at place {place}")
        ids.append(int(word))
    return ids


def _read(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"--prompt-file {name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompt-file {name} is not UTF-8 text: bad byte at {error.start}") from error
