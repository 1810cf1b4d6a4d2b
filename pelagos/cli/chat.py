"""``pelagos chat``: talk to a model in the terminal, in this process."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pelagos.cli.generate import Seed, TopP
from pelagos.cli.loading import DtypeOption, Rounding, RoundingOption, default_temperature, load
from pelagos.cli.options import MODEL_HELP, Device, Threads, use_threads
from pelagos.common.errors import UsageError
from pelagos.engine.params import SamplingParams
from pelagos.model.places import model_place

if TYPE_CHECKING:
    from pelagos.chat.tokenizer import Tokenizer
    from pelagos.cli.chat_session import Session
    from pelagos.engine.engine import Engine
    from pelagos.model.transformer import Model

MAX_HISTORY = 1000  # lines that the history keeps

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Context = Annotated[
    list[Path], typer.Option(help="A text file that the model reads before the first message; may be repeated.")
]
System = Annotated[str | None, typer.Option(help="What the model is told before everything else.")]
Thinking = Annotated[bool, typer.Option("--thinking/--no-thinking", help="Let the model think first.")]
Effort = Annotated[str, typer.Option(help="How much to think, such as low, high or max.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1 << 24,
        help="Tokens of an answer at most, thinking included. Default: 65536 with thinking, 8192 without.",
        rich_help_panel="Sampling",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=2.0,
        help="0 always takes the most likely token. Default: the checkpoint's generation_config.json, else 1.",
        rich_help_panel="Sampling",
    ),
]


def chat_command(
    model: ModelName = "nano",
    context: Context = [],  # noqa: B006  typer reads it and copies
    system: System = None,
    thinking: Thinking = True,
    effort: Effort = "high",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = SamplingParams.top_p,
    seed: Seed = SamplingParams.seed,
    device: Device = "cpu",
    dtype: DtypeOption = None,
    rounding: RoundingOption = Rounding.AUTO,
    threads: Threads = None,
) -> None:
    """Talk to a model; /help lists what can be done on the way.

    Answers go to standard output, everything else to standard error. Without a terminal each line of standard input is
    a message of one chat, and thinking is not shown.
    """
    from pelagos.chat.effort import load_effort_levels
    from pelagos.cli.chat_session import Session, Speaker, converse, file_text

    model = model_place(model)
    folder = Path(model)
    levels = load_effort_levels(folder)
    levels.resolve(effort)
    params = SamplingParams(
        temperature=default_temperature(folder) if temperature is None else temperature, top_p=top_p, seed=seed
    )
    files = "".join(file_text(path, "--context") for path in context)
    tokenizer = _tokenizer(model)
    use_threads(threads)
    session = Session(
        speaker=Speaker(
            engine=_engine(load(model, device, dtype, rounding)),
            tokenizer=tokenizer,
            levels=levels,
            params=params,
            max_tokens=max_tokens,
            thinking=thinking,
            effort=effort,
        ),
        system=system,
        context=files,
        interactive=sys.stdin.isatty() and sys.stdout.isatty(),
        out=sys.stdout,
        notes=_note,
    )
    try:
        if session.interactive:
            _greet(model, session)
            with _History(Path.home() / ".local" / "state" / "pelagos" / "chat_history"):
                converse(session, _typed)
        else:
            converse(session, _piped)
    finally:
        session.speaker.engine.close()


def _tokenizer(model: str) -> "Tokenizer":
    from pelagos.chat.tokenizer import FILE_NAME, Tokenizer

    if not (Path(model) / FILE_NAME).is_file():
        raise UsageError(
            f"{model} has no {FILE_NAME}, which a chat needs: give the folder of a checkpoint that has one"
        )
    return Tokenizer.from_folder(model)


def _engine(model: "Model") -> "Engine":
    """An engine in a thread of its own, so that Ctrl-C ends an answer and leaves the engine whole."""
    from pelagos.engine.engine import Engine

    engine = Engine(model)
    engine.start()
    return engine


def _note(text: str) -> None:
    from pelagos.cli.chat_session import DIM, PLAIN

    dim, plain = (DIM, PLAIN) if sys.stderr.isatty() else ("", "")
    print(f"{dim}{text}{plain}", file=sys.stderr, flush=True)


def _greet(model: str, session: "Session") -> None:
    limit = session.speaker.engine.model.config.max_positions
    _note(f"{model}, {limit:,} tokens of context. /help lists the commands, Ctrl-D leaves.")
    if session.context:
        number = len(session.speaker.tokenizer.encode(session.context))
        _note(f"{number:,} tokens of files go before your first message")


def _typed() -> str | None:
    """The next message from the terminal, None at its end."""
    try:
        text = input("> ")
        while text.endswith("\\"):
            text = text[:-1] + "\n" + input(". ")
    except EOFError:
        _note("")
        return None
    return text


def _piped() -> str | None:
    """The next message from standard input, None at its end: a line, or more where a backslash ends one."""
    line = sys.stdin.readline()
    text = line.rstrip("\n")
    while text.endswith("\\"):
        text = text[:-1] + "\n" + sys.stdin.readline().rstrip("\n")
    return text if line else None


class _History:
    """Lines typed in earlier chats, where Python has readline; the file is for its owner's eyes alone."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        try:
            import readline

            readline.set_history_length(MAX_HISTORY)
            readline.read_history_file(self._path)
        except (ImportError, OSError):
            pass  # no readline, or nothing typed yet: lines can still be typed

    def __exit__(self, *error: object) -> None:
        try:
            import readline

            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            readline.write_history_file(self._path)
        except ImportError:
            pass
        except OSError as problem:
            _note(f"{self._path} cannot be written, so what you typed is not kept: {problem.strerror}")
