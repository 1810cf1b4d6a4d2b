"""A chat in a terminal: what was said, what the next answer is made from, and the commands that start with a slash."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pelagos.chat.effort import EffortLevels
from pelagos.cli.progress import PatientBar
from pelagos.common.errors import PelagosError, UsageError
from pelagos.common.files import write_atomic
from pelagos.engine.params import SamplingParams

if TYPE_CHECKING:
    from pelagos.chat.parse import Delta, ParsedMessage
    from pelagos.chat.render import RenderedPrompt
    from pelagos.chat.tokenizer import Tokenizer
    from pelagos.engine.engine import Engine
    from pelagos.engine.request import Event, Finished

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
MAX_FILE_BYTES = 64 << 20
# Official defaults of the longest answer; both are cut to what the context has left.
MAX_TOKENS, MAX_TOKENS_THINKING = 8192, 65536

HELP = """\
/file PATH ...     put the text of files before your next message
/think WORD        how much to think: off, or an effort such as low, high, max
/system [TEXT]     show the system prompt, or set it; a minus sign takes it away
/save PATH         write the chat to a new file: Markdown, or JSON if its name ends in .json
/clear             forget what was said, but not the system prompt and the files of --context
/help              this list
/quit              leave, as Ctrl-D does
A backslash at the end of a line goes on with the message in the next one; // starts a message with one slash.
Ctrl-C stops an answer; what came of it stays."""


@dataclass(kw_only=True)
class Speaker:
    """The engine and how it is asked. ``thinking`` is off where ``effort`` resolves to none. ``max_tokens``: None for
    the official default."""

    engine: "Engine"
    tokenizer: "Tokenizer"
    levels: EffortLevels
    params: SamplingParams
    max_tokens: int | None
    thinking: bool
    effort: str

    def render(self, messages: Sequence[dict[str, Any]]) -> "RenderedPrompt":
        from pelagos.chat.render import render

        return render(messages, self.tokenizer, thinking=self.thinking, effort=self.effort, levels=self.levels)

    def stream(self, prompt: "RenderedPrompt") -> "Iterator[Event]":
        """The engine's events for one answer, which is no longer than what the context or the cache has left."""
        from pelagos.engine.request import Request

        wanted = self.max_tokens or (MAX_TOKENS_THINKING if prompt.thinking else MAX_TOKENS)
        room = max(1, self.engine.cache.most_tokens - len(prompt.token_ids))
        params = replace(self.params, max_tokens=min(wanted, room), stop_ids=tuple(sorted(self.tokenizer.stop_ids)))
        return self.engine.stream(Request(prompt_ids=prompt.token_ids, params=params))


class Printer:
    """Writes an answer as it comes: thinking dim where ``show_thinking``, and not at all elsewhere."""

    def __init__(self, out: TextIO, *, show_thinking: bool) -> None:
        self._out = out
        self._show_thinking = show_thinking
        self._kind: str | None = None

    def write(self, delta: "Delta") -> None:
        if delta.kind == "reasoning" and not self._show_thinking:
            return
        if delta.kind != self._kind:
            self._end_part()
            self._out.write(DIM if delta.kind == "reasoning" else "")
            self._kind = delta.kind
        self._out.write(delta.text)
        self._out.flush()

    def _end_part(self) -> None:
        if self._kind == "reasoning":
            self._out.write(PLAIN + "\n\n")
        elif self._kind is not None:
            self._out.write("\n")

    def end(self) -> None:
        """End the answer's last line, however far it came."""
        self._out.write(PLAIN if self._kind == "reasoning" else "")
        self._out.write("\n")
        self._out.flush()


@dataclass(kw_only=True)
class Answered:
    """One answer and its figures; ``finished`` is None if it was stopped."""

    message: "ParsedMessage"
    finished: "Finished | None"
    num_prompt_tokens: int
    seconds: float

    def summary(self) -> str:
        parts = [f"{self.message.num_tokens} tokens"]
        if self.message.num_reasoning_tokens:
            parts[0] += f" ({self.message.num_reasoning_tokens} thinking)"
        prompt = f"prompt {self.num_prompt_tokens} tokens"
        if self.finished is None:
            return ", ".join([*parts, prompt, f"stopped after {self.seconds:.1f} s"])
        usage, times = self.finished.usage, self.finished.times
        if usage.num_cached:
            prompt += f", {usage.num_cached} of them known"
        if times.started is not None and times.first_token is not None:
            if usage.num_generated > 1:
                parts[0] += f" at {_rate((usage.num_generated - 1) / max(1e-9, times.finished - times.first_token))}"
            prompt += f", read at {_rate(usage.num_computed / max(1e-9, times.first_token - times.started))}"
        parts.append(prompt)
        if self.finished.answers[0].finish_reason == "length":
            parts.append("cut at the longest length")
        return ", ".join(parts)


def _rate(per_second: float) -> str:
    return f"{per_second:.3g} tokens/s" if per_second < 100 else f"{per_second:,.0f} tokens/s"


@dataclass(kw_only=True)
class Session:
    """``context``: texts of --context files, part of the first message. ``interactive``: a person is there, who sees
    the thinking, may stop an answer and is told of errors. ``notes``: where figures and hints go."""

    speaker: Speaker
    system: str | None
    context: str
    interactive: bool
    out: TextIO
    notes: Callable[[str], None]
    messages: list[dict[str, Any]] = field(default_factory=list)
    pending: str = ""  # text of /file, part of the next message

    def ask(self, text: str) -> None:
        """Answer one message. Ctrl-C ends the answer, and what came of it is kept; a question without any answer is
        taken back. Raises PelagosError and leaves the chat as it was if the prompt cannot be used."""
        before = self.pending if self.messages else self.context + self.pending
        question = {"role": "user", "content": before + text}
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        prompt = self.speaker.render([*head, *self.messages, question])
        answered = self._answer(prompt)
        self.notes(answered.summary())
        message = answered.message.as_message()
        if not message["content"]:
            self.notes("there was no answer, so the question does not count")
            return
        self.messages += [question, message]
        self.pending = ""

    def _answer(self, prompt: "RenderedPrompt") -> Answered:
        from pelagos.chat.parse import OutputParser
        from pelagos.engine.request import Reading, Tokens

        parser = OutputParser.for_prompt(prompt, self.speaker.tokenizer)
        printer = Printer(self.out, show_thinking=self.interactive)
        bar = PatientBar("reading the chat")
        started = time.monotonic()
        finished = None
        events = self.speaker.stream(prompt)
        try:
            for event in events:
                if isinstance(event, Reading):
                    bar.show(event.num_read, event.num_prompt_tokens)
                elif isinstance(event, Tokens):
                    bar.stop()
                    for delta in parser.push([token.token_id for token in event.tokens]):
                        printer.write(delta)
                else:
                    finished = event
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            finished = None
        finally:
            bar.stop()
        if finished is not None and finished.error is not None:
            raise PelagosError(finished.error)
        is_cut = finished is not None and finished.answers[0].finish_reason == "length"
        for delta in parser.finish("length" if is_cut else "stop"):
            printer.write(delta)
        printer.end()
        return Answered(
            message=parser.message,
            finished=finished,
            num_prompt_tokens=len(prompt.token_ids),
            seconds=time.monotonic() - started,
        )

    def command(self, line: str) -> bool:
        """Do what a line with a slash says; false to leave. Raises UsageError for a command that cannot be used."""
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name in ("quit", "exit"):
            return False
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self.notes(HELP),
            "file": self._add_files,
            "think": self._set_thinking,
            "system": self._set_system,
            "save": self._save,
            "clear": self._clear,
        }
        if name not in commands:
            raise UsageError(f"/{name} is not a command: /help lists them, and // starts a message with a slash")
        commands[name](rest)
        return True

    def _add_files(self, names: str) -> None:
        import shlex

        try:
            paths = shlex.split(names)
        except ValueError as error:
            raise UsageError(f"/file {names} cannot be read as a list of names: {error}") from None
        if not paths:
            raise UsageError("/file needs the name of a file")
        text = "".join(file_text(Path(path).expanduser(), "/file") for path in paths)
        self.pending += text
        self.notes(f"{len(self.speaker.tokenizer.encode(text)):,} tokens go before your next message")

    def _set_thinking(self, word: str) -> None:
        if word == "off":
            self.speaker.thinking = False
        elif word:
            self.speaker.levels.resolve(word)
            self.speaker.thinking, self.speaker.effort = True, word
        thinking = self.speaker.thinking and self.speaker.levels.resolve(self.speaker.effort) != "none"
        self.notes(f"thinking is {'on, effort ' + self.speaker.effort if thinking else 'off'}")

    def _set_system(self, text: str) -> None:
        if text:
            self.system = None if text == "-" else text
        self.notes("no system prompt" if self.system is None else f"system prompt: {self.system}")

    def _clear(self, _: str) -> None:
        self.messages, self.pending = [], ""
        self.notes("a new chat")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs the name of a new file")
        path = Path(name).expanduser()
        if path.exists():
            raise UsageError(f"{path} exists already: give /save the name of a new file")
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*system, *self.messages]
        if path.suffix == ".json":
            write_atomic(path, json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n")
        else:
            write_atomic(path, "".join(f"## {message['role']}\n\n{message['content']}\n\n" for message in messages))
        self.notes(f"saved as {path}")


def file_text(path: Path, option: str) -> str:
    """A file as the model reads it. Raises UsageError, which names ``option``, for a file that is no text."""
    try:
        if not path.is_file():
            raise UsageError(f"{option} {path} is not there or not a file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{option} {path} must have at most {MAX_FILE_BYTES >> 20} MiB")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path} is not UTF-8 text: bad byte at {error.start}") from error
    if "\0" in text:
        raise UsageError(f"{option} {path} is not text: it holds a zero byte")
    return f"[file name]: {path.name}\n[file content begin]\n{text}\n[file content end]\n"


def converse(session: Session, read: Callable[[], str | None]) -> None:
    """Take message after message until ``read`` gives None or one is /quit. Where a person is there, errors are told
    and Ctrl-C ends what is going on; elsewhere both end the chat."""
    going_on = True
    while going_on:
        try:
            going_on = _turn(session, read())
        except KeyboardInterrupt:
            if not session.interactive:
                raise
            session.notes("\nCtrl-D or /quit leaves")


def _turn(session: Session, line: str | None) -> bool:
    """Take one message or command; false to leave."""
    if line is None:
        return False
    text = line.strip()
    try:
        if text.startswith("/") and not text.startswith("//"):
            return session.command(text)
        if text:
            session.ask(text.removeprefix("/") if text.startswith("//") else text)
    except PelagosError as error:
        if not session.interactive:
            raise
        session.notes(f"pelagos: {error}")
    return True
