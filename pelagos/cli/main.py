"""The ``pelagos`` command: which commands there are, and how each of them ends.

A command's file is imported when the command is called, and torch when its work begins, so that help is quick. Whatever
goes wrong ends in one message on standard error and one of these exit codes: 1 failed, 2 bad usage or input, 130
stopped by Ctrl-C. 0 is success.
"""

import io
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from pelagos.common import env, log
from pelagos.common.errors import PelagosError


@dataclass(frozen=True, kw_only=True)
class CommandPlace:
    """Where a command is defined, and its line in ``pelagos --help``."""

    module: str
    function: str
    help: str


COMMANDS = {
    "serve": CommandPlace(
        module="pelagos.cli.serve", function="serve_command", help="Serve a model: APIs and a chat page."
    ),
    "generate": CommandPlace(
        module="pelagos.cli.generate", function="generate_command", help="Let a model continue a prompt."
    ),
    "chat": CommandPlace(module="pelagos.cli.chat", function="chat_command", help="Talk to a model in the terminal."),
    "connect": CommandPlace(
        module="pelagos.cli.connect",
        function="connect_command",
        help="Show or write a client's settings for a server.",
    ),
    "inspect": CommandPlace(
        module="pelagos.cli.inspect", function="inspect_command", help="Show what a checkpoint or a preset holds."
    ),
    "convert": CommandPlace(
        module="pelagos.cli.convert", function="convert_command", help="Write a checkpoint in another storage format."
    ),
    "train": CommandPlace(
        module="pelagos.cli.train", function="train_command", help="Train a model by a recipe: tiny, nano, small."
    ),
    "train prepare": CommandPlace(
        module="pelagos.cli.train_prepare",
        function="train_prepare_command",
        help="Make a tokenizer and token shards out of text.",
    ),
    "bench context": CommandPlace(
        module="pelagos.cli.bench_context",
        function="bench_context_command",
        help="Measure recall over text length and depth.",
    ),
    "bench offline": CommandPlace(
        module="pelagos.cli.bench_offline",
        function="bench_offline_command",
        help="Measure the engine on many requests.",
    ),
    "bench serving": CommandPlace(
        module="pelagos.cli.bench_serving",
        function="bench_serving_command",
        help="Measure what a server's users wait for.",
    ),
    "doctor": CommandPlace(
        module="pelagos.cli.doctor",
        function="doctor_command",
        help="Show what this machine can do and what runs on it.",
    ),
}

# Bad options and arguments. typer has no public name for their common class, the parent of BadParameter.
_USAGE_ERRORS = cast(tuple[type[typer.BadParameter], ...], typer.BadParameter.__bases__)


class LazyGroup(TyperGroup):
    """A group that lists COMMANDS without importing them, and imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, place in COMMANDS.items():
            self.add_command(TyperCommand(name, help=place.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if " ".join(args[:2]) in COMMANDS:  # a command of two words
            args = [" ".join(args[:2]), *args[2:]]
        name, _, rest = super().resolve_command(ctx, args)  # ends here with a suggestion if there is no such command
        assert name is not None
        return name, _import_command(name), rest


def _import_command(name: str) -> Any:
    place = COMMANDS[name]
    single = typer.Typer(add_completion=False)
    single.command(name)(getattr(import_module(place.module), place.function))
    return typer.main.get_command(single)


app = typer.Typer(cls=LazyGroup, add_completion=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"pelagos {version('pelagos')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _pelagos(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Pelagos: an open, complete DeepSeek-V4."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; ``arguments`` default to those of the process. Returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without some character shows "?", and work goes on
    try:
        log.configure()
        status = app(args=arguments, prog_name="pelagos", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # whoever read our output has gone; the interpreter must not try to flush it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PelagosError as error:
        return _fail(str(error), error.exit_code)
    except _USAGE_ERRORS as error:
        return _fail(error.format_message(), 2)
    except OSError as error:
        return _fail(str(error), 1)
    except Exception as error:
        logging.getLogger(__name__).debug("internal error", exc_info=True)
        return _fail(f"internal error: {type(error).__name__}: {error} ({env.LOG.name}=debug shows where)", 1)


def _fail(message: str, code: int) -> int:
    print(f"pelagos: error: {message}", file=sys.stderr)
    return code
