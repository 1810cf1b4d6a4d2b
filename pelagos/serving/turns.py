"""What the model wrote, remembered to the token, so that the next prompt holds it as it was.

Clients send an answer back without its reasoning, with its arguments in another order or spacing, and always as text,
which has other tokens than those that were sampled. Each of these makes a prompt that the cache does not know. So a
turn is remembered, and a prompt in which the same turn stands again gets its tokens.

The same turn: with calls, one whose ids, names and arguments (as values, not as text) are those that the model wrote,
found by the id of its first call; without calls, one whose content is the same behind the very same prompt. Reasoning
or content that the client leaves out is filled in; where it says something else, it gets what it sent.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelagos.chat.adapter import Conversion, Turn
from pelagos.chat.tokenizer import ASSISTANT, Tokenizer
from pelagos.serving.record_store import RecordStore

NAME = re.compile(r"turn_[0-9a-f]{40}")
FOLDER = "turns"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A whole answer: the prompt it followed, its ids, and how it is to be read back."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    turn: Turn


class Turns:
    """The turns of one server, those of each namespace for itself; safe between threads."""

    def __init__(self, folder: Path | None, tokenizer: Tokenizer, *, max_count: int, max_bytes: int) -> None:
        """Raises ConfigError if the folder cannot be used."""
        place = None if folder is None else folder / FOLDER
        self._records = RecordStore(place, NAME, max_count=max_count, max_bytes=max_bytes)
        # Records of another vocabulary have other names, so that they are never found.
        self._vocabulary = hashlib.sha256(tokenizer.path.read_bytes()).digest()
        self._assistant = tokenizer.encode_special(ASSISTANT)
        self._eos = tokenizer.eos_id

    def __len__(self) -> int:
        return len(self._records)

    def remember(self, namespace: str, written: Written) -> None:
        """Keep an answer. One that is cut short is no whole turn and is left out."""
        if not written.token_ids or written.token_ids[-1] != self._eos:
            return
        turn, prompt_ids = written.turn, written.prompt_ids
        start = _last(prompt_ids, self._assistant)
        name = (
            self._call_name(namespace, turn.calls[0][0])
            if turn.calls
            else self._text_name(namespace, hashlib.sha256(_bytes(prompt_ids[: start + 1])), turn.content)
        )
        record = {"calls": turn.calls, "reasoning": turn.reasoning or "", "content": turn.content}
        self._records.put(name, {**record, "token_ids": [*prompt_ids[start + 1 :], *written.token_ids]})

    def restored(self, namespace: str, conversion: Conversion, prompt_ids: list[int]) -> list[int]:
        """The prompt with the turns that are remembered as they were written."""
        turns = conversion.turns
        if not conversion.has_tools or not turns or not len(self):
            return prompt_ids
        starts = [place for place, token_id in enumerate(prompt_ids) if token_id == self._assistant]
        result: list[int] = []
        done = 0
        so_far = hashlib.sha256()
        for start, turn in zip(starts, turns, strict=False):  # the last mark opens the answer that is to come
            added = prompt_ids[done : start + 1]
            result += added
            so_far.update(_bytes(added))
            end = _end(prompt_ids, start + 1, self._eos, self._assistant)
            sent = prompt_ids[start + 1 : end]
            name = (
                self._call_name(namespace, turn.calls[0][0])
                if turn.calls
                else self._text_name(namespace, so_far.copy(), turn.content)
            )
            record = self._records.get(name)
            is_whole = bool(sent) and sent[-1] == self._eos
            if is_whole and record is not None and _is_same(turn, record, sent):
                sent = record["token_ids"]
                self._records.use(name)
            result += sent
            so_far.update(_bytes(sent))
            done = end
        return result + prompt_ids[done:]

    def _call_name(self, namespace: str, call_id: str) -> str:
        return self._name(json.dumps([namespace, "call", call_id]).encode())

    def _text_name(self, namespace: str, before: "hashlib._Hash", content: str) -> str:
        before.update(json.dumps([namespace, "text", content]).encode())
        return self._name(before.digest())

    def _name(self, what: bytes) -> str:
        return f"turn_{hashlib.sha256(self._vocabulary + what).hexdigest()[:40]}"


def same_value(one: Any, other: Any) -> bool:
    """Whether two JSON values mean the same: the order of keys and the spelling of a number say nothing."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    return bool(one == other)


def _is_same(turn: Turn, record: dict[str, Any], sent: Sequence[int]) -> bool:
    """Whether a turn in a request is the one of a record, and the prompt shows it in the same way: an answer that was
    given with reasoning does not stand for one whose reasoning the prompt leaves out."""
    calls, token_ids = record.get("calls"), record.get("token_ids")
    if not isinstance(calls, list) or not isinstance(token_ids, list) or not token_ids:
        return False
    return (
        token_ids[0] == sent[0]
        and len(turn.calls) == len(calls)
        and all(map(_same_call, turn.calls, calls))
        and turn.content in ((record["content"], "") if calls else (record["content"],))
        and (turn.reasoning or "") in (record["reasoning"], "")
    )


def _same_call(sent: tuple[str, str, str], written: Sequence[str]) -> bool:
    if list(sent[:2]) != list(written[:2]):
        return False
    if sent[2] == written[2]:
        return True
    try:
        return same_value(json.loads(sent[2]), json.loads(written[2]))
    except (ValueError, RecursionError):
        return False


def _last(ids: Sequence[int], wanted: int) -> int:
    return next(place for place in range(len(ids) - 1, -1, -1) if ids[place] == wanted)


def _end(ids: Sequence[int], start: int, eos: int, assistant: int) -> int:
    """The place behind the end mark of the turn that starts at ``start``."""
    for place in range(start, len(ids)):
        if ids[place] == eos:
            return place + 1
        if ids[place] == assistant:
            return place
    return len(ids)


def _bytes(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()
