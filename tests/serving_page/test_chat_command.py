"""``pelagos chat``: what the model is asked, what is written where, and what a person can do on the way."""

import dataclasses
import io
import json
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from byte_model import write_byte_model

from pelagos.chat.effort import JULY_2026
from pelagos.chat.tokenizer import Tokenizer
from pelagos.cli import chat_session
from pelagos.cli.chat_session import DIM, PLAIN, Session, Speaker, converse
from pelagos.cli.loading import default_temperature
from pelagos.cli.main import main
from pelagos.common.errors import UsageError
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Answer, Event, Finished, Reading, Request, Times, Tokens, Usage
from pelagos.engine.sampler import Sampled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("model"))


@dataclasses.dataclass
class Engine:
    """Answers with ``answers`` in turn, and keeps what it was asked. ``interrupt``: Ctrl-C after that many tokens."""

    tokenizer: Tokenizer
    answers: list[str]
    interrupt: int | None = None
    prompts: list[str] = dataclasses.field(default_factory=list)
    params: list[SamplingParams] = dataclasses.field(default_factory=list)

    cache = SimpleNamespace(most_tokens=1 << 20)

    def stream(self, request: Request) -> Iterator[Event]:
        self.prompts.append(self.tokenizer.decode(request.prompt_ids))
        self.params.append(request.params)
        text, marker, content = self.answers.pop(0).partition("</think>")
        ids = self.tokenizer.encode(text)
        if marker:
            ids += [self.tokenizer.encode_special("</think>"), *self.tokenizer.encode(content)]
        ids.append(self.tokenizer.eos_id)
        sampled = tuple(Sampled(token_id=token_id, logprob=0.0, top_logprobs=()) for token_id in ids)
        num_prompt = len(request.prompt_ids)
        yield Reading(request_id="r", num_read=num_prompt, num_cached=0, num_prompt_tokens=num_prompt)
        for number, token in enumerate(sampled):
            if number == self.interrupt:
                raise KeyboardInterrupt
            yield Tokens(request_id="r", choice=0, tokens=(token,), text="")
        yield Finished(
            request_id="r",
            answers=(Answer(tokens=sampled, text=None, finish_reason="stop"),),
            usage=Usage(num_prompt_tokens=num_prompt, num_cached=7, num_computed=100, num_generated=81),
            times=Times(started=1.0, first_token=3.0, finished=7.0),
            seed=0,
        )


Make = Callable[..., tuple[Session, Engine, io.StringIO, list[str]]]


@pytest.fixture
def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def make(*answers: str, interactive: bool = True, **fields: Any) -> tuple[Session, Engine, io.StringIO, list[str]]:
        tokenizer = Tokenizer.from_folder(folder)
        engine = Engine(tokenizer, list(answers))
        speaker = Speaker(
            engine=engine,  # type: ignore[arg-type]
            tokenizer=tokenizer,
            levels=JULY_2026,
            params=SamplingParams(),
            max_tokens=None,
            thinking=fields.pop("thinking", True),
            effort="high",
        )
        out, notes = io.StringIO(), list[str]()
        session = Session(
            **{"system": None, "context": "", **fields},
            speaker=speaker,
            interactive=interactive,
            out=out,
            notes=notes.append,
        )
        return session, engine, out, notes

    return make


def given(*lines: str) -> Callable[[], str | None]:
    """What reads the lines, then their end."""
    rest = iter(lines)
    return lambda: next(rest, None)


def test_a_chat_remembers_and_shows_thinking_dim(make: Make) -> None:
    session, engine, out, notes = make("hm</think>One.", "Two.</think>", "so</think>Three.", system="Be brief.")
    converse(session, given("first\n", "\n", "second"))
    assert out.getvalue().startswith(f"{DIM}hm{PLAIN}\n\nOne.\n")
    assert "Be brief." in engine.prompts[0]
    assert "One." in engine.prompts[1]
    assert "hm" not in engine.prompts[1]  # reasoning of earlier turns is not read again
    assert re.fullmatch(
        r"8 tokens \(2 thinking\) at 20 tokens/s, prompt \d+ tokens, 7 of them known, read at 50 tokens/s", notes[0]
    )
    assert notes[-1] == "there was no answer, so the question does not count"
    assert [message["role"] for message in session.messages] == ["user", "assistant"]
    session.ask("third")
    assert "second" not in engine.prompts[2]


def test_without_a_terminal_only_answers_come_out(make: Make) -> None:
    session, _, out, _ = make("hm</think>One.", "</think>Two.", interactive=False)
    converse(session, given("first", "second"))
    assert out.getvalue() == "One.\nTwo.\n"


def test_ctrl_c_stops_the_answer_and_not_the_program(make: Make) -> None:
    session, engine, out, notes = make("</think>A long answer", "</think>Next.")
    engine.interrupt = 7
    session.ask("first")
    assert out.getvalue() == "A long\n"
    assert "stopped after" in notes[0]
    assert session.messages[-1]["content"] == "A long"
    engine.interrupt = None
    session.ask("second")
    assert "A long" in engine.prompts[1]
    piped, engine, _, _ = make("</think>A long answer", interactive=False)
    engine.interrupt = 7
    with pytest.raises(KeyboardInterrupt):
        piped.ask("first")


def test_commands(make: Make, tmp_path: Path) -> None:
    session, engine, _, notes = make("</think>One.", "Two.", "Three.", context="[context]")
    (tmp_path / "a b.txt").write_text("file text", encoding="utf-8-sig")
    lines = [
        f"/file '{tmp_path / 'a b.txt'}'",
        "question",
        "/think off",
        "/system Speak Greek.",
        "//etc is what?",
        f"/save {tmp_path / 'chat.md'}",
        f"/save {tmp_path / 'chat.json'}",
        "/clear",
        "/system -",
        "again",
        "/help",
        "/think",
        "/quit",
        "never asked",
    ]
    converse(session, given(*lines))
    assert (
        "[context][file name]: a b.txt\n[file content begin]\nfile text\n[file content end]\nquestion"
        in engine.prompts[0]
    )
    assert "Speak Greek." in engine.prompts[1]
    assert "/etc is what?" in engine.prompts[1]
    assert "//etc" not in engine.prompts[1]
    assert engine.prompts[1].endswith("</think>")  # no thinking
    assert engine.params[0].max_tokens == 65536
    assert engine.params[1].max_tokens == 8192
    assert set(engine.params[0].stop_ids) == engine.tokenizer.stop_ids
    assert "[context]again" in engine.prompts[2]
    assert "One." not in engine.prompts[2]
    assert "Speak Greek." not in engine.prompts[2]
    saved = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant", "user", "assistant"]
    assert "## assistant\n\nTwo.\n" in (tmp_path / "chat.md").read_text()
    assert notes[-1] == "thinking is off"
    assert chat_session.HELP in notes
    assert engine.answers == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nothing", "/nothing is not a command"),
        ("/file", "needs the name"),
        ("/file /no/such", "/file /no/such is not there"),
        ("/file 'open", "cannot be read as a list"),
        ("/think hard", "effort must be one of none, minimal, low"),
        ("/save", "needs the name"),
        ("/save .", "exists already"),
    ],
)
def test_commands_that_cannot_be_used(make: Make, line: str, words: str) -> None:
    session, engine, _, notes = make("</think>One.")
    converse(session, given(line, "go on"))
    assert words in notes[0]
    assert len(engine.prompts) == 1
    with pytest.raises(UsageError, match=words.split(" of ")[0]):
        converse(make(interactive=False)[0], given(line))


def test_files_that_are_no_text(make: Make, tmp_path: Path) -> None:
    session, *_ = make()
    for data, words in [(b"\xff\xfe", "not UTF-8 text: bad byte at 0"), (b"a\0", "zero byte")]:
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(UsageError, match=words):
            session.command(f"/file {tmp_path / 'x'}")
    assert session.pending == ""


def test_default_temperature(tmp_path: Path) -> None:
    assert default_temperature(tmp_path) == 1.0
    for text, expected in [('{"temperature": 0.3}', 0.3), ('{"temperature": 7}', 1.0), ("[]", 1.0), ("{}", 1.0)]:
        (tmp_path / "generation_config.json").write_text(text)
        assert default_temperature(tmp_path) == expected


def test_a_model_without_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "tiny"]) == 2
    assert "tiny has no tokenizer.json, which a chat needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temperature", "3"], "--temperature"),
        (["--effort", "hard"], "effort must be one of"),
        (["--context", "/no/such"], "--context /no/such is not there"),
        (["--top-p", "0"], "top_p must be above 0"),
    ],
)
def test_bad_options(folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(folder), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_piped_with_a_real_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\\\ntwo\nthree\n"))
    asked: list[list[dict[str, Any]]] = []
    render = Speaker.render
    monkeypatch.setattr(
        Speaker, "render", lambda self, messages: asked.append(list(messages)) or render(self, messages)
    )
    options = ["--no-thinking", "--max-tokens", "8", "--temperature", "0", "--threads", "1"]
    assert main(["chat", str(folder), *options]) == 0
    written = capsys.readouterr()
    assert [messages[-1]["content"] for messages in asked] == ["one\ntwo", "three"]
    assert len(written.out.strip()) > 0
    assert written.err.count("tokens/s, prompt") == 2


# The command with an engine that takes its time, so that there is something to stop.
SLOW = """
import sys, time
from pelagos.cli.main import main
from pelagos.engine.engine import Engine

quick = Engine.step

def slow(engine):
    time.sleep(0.1)
    return quick(engine)

Engine.step = slow
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str], home: Path) -> None:
        self.shown = ""
        self.process, self._end = pty.fork()
        if self.process == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background of a shell ignores it
            environment = {**os.environ, "HOME": str(home), "TERM": "xterm", "COLUMNS": "200"}
            os.execve(sys.executable, [sys.executable, "-c", SLOW, *arguments], environment)

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait(self, text: str, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.shown
            try:
                self.shown += os.read(self._end, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(self.shown) from None

    def ended(self) -> int:
        _, status = os.waitpid(self.process, 0)
        os.close(self._end)
        return os.waitstatus_to_exitcode(status)


def test_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    options = ["--temperature", "0", "--max-tokens", "100000", "--threads", "1"]
    terminal = Terminal(["chat", str(folder), *options], tmp_path)
    try:
        terminal.wait("Ctrl-D leaves")
        terminal.wait("> ")
        terminal.type("hello\r")
        terminal.wait("hello\r\n" + DIM)
        time.sleep(0.3)
        terminal.type("\x03")
        terminal.wait("stopped after")
        terminal.type("/nothing\r")
        terminal.wait("/help lists them")
        terminal.type("\x03")
        terminal.wait("Ctrl-D or /quit leaves")
        terminal.type("/quit\r")
    except BaseException:
        os.kill(terminal.process, signal.SIGKILL)
        raise
    finally:
        code = terminal.ended()
    assert code == 0
    history = tmp_path / ".local" / "state" / "pelagos" / "chat_history"
    assert "hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
