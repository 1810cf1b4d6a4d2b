"""How commands are found and how each of them ends."""

import subprocess
import sys
import time
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from pelagos.cli import main as cli
from pelagos.cli.main import COMMANDS, app, main
from pelagos.common.errors import CheckpointError, ResourceError, UsageError

RUN = "import sys; from pelagos.cli.main import main; sys.exit(main())"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment or None)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command named "work" whose function a test sets."""
    module = ModuleType("work_command")
    monkeypatch.setitem(sys.modules, "work_command", module)
    place = cli.CommandPlace(module="work_command", function="work", help="Work.")
    monkeypatch.setattr(cli, "COMMANDS", {**COMMANDS, "work": place})
    return module


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for name, place in COMMANDS.items():
        assert name in result.stdout
        assert place.help in result.stdout


def test_no_arguments_are_answered_by_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: pelagos" in capsys.readouterr().out


def test_help_is_quick_and_imports_no_command() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert run("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5
    script = (
        "import sys; from pelagos.cli.main import main; main(['--help'])\n"
        "print([name for name in sys.modules if name.startswith('pelagos.')])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pelagos.cli.main" in result.stdout
    assert not any(place.module in result.stdout for place in COMMANDS.values())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    heavy = "{'torch', 'numpy', 'tokenizers', 'deepseek_recipe'}"
    script = (
        f"import sys; from pelagos.cli.main import main\n"
        f"assert main({arguments}) == 0; assert not {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pelagos {version('pelagos')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat"], "No such command 'generat'. Did you mean 'generate'?"),
        (["--verbose"], "No such option: --verbose"),
        (["generate"], "Missing argument"),
        (["generate", "tiny", "--top-k", "many"], "Invalid value for '--top-k'"),
        (["generate", "tiny", "--dtype", "int8"], "Invalid value for '--dtype'"),
    ],
)
def test_bad_usage_ends_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("pelagos: error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("seed must be a number"), 2, "pelagos: error: seed must be a number\n"),
        (CheckpointError("dir", ["no config.json"]), 2, "pelagos: error: dir: no config.json\n"),
        (ResourceError("no memory"), 1, "pelagos: error: no memory\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "pelagos: error: [Errno 13] Permission denied: '/x'\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(7), 7, ""),
        (
            ZeroDivisionError("division by zero"),
            1,
            "pelagos: error: internal error: ZeroDivisionError: division by zero (PELAGOS_LOG=debug shows where)\n",
        ),
    ],
)
def test_every_exception_has_its_end(
    error: BaseException, code: int, message: str, command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    command.work = work
    assert main(["work"]) == code
    assert capsys.readouterr() == ("", message)


def test_debug_logs_where_an_internal_error_was(
    command: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        secret_local = "hidden"
        raise RuntimeError(len(secret_local))

    command.work = work
    monkeypatch.setenv("PELAGOS_LOG", "debug")
    assert main(["work"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "in work" in error
    assert "hidden" not in error


def test_a_bad_environment_variable_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELAGOS_LOG", "loud")
    assert main(["--version"]) == 2
    assert "PELAGOS_LOG must be one of debug, info, warning, error, got 'loud'" in capsys.readouterr().err


def test_a_command_that_returns_has_succeeded(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def work(name: str) -> None:
        print(name)

    command.work = work
    assert main(["work", "done"]) == 0
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize("arguments", [["--version"], ["generate", "--help"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), error) == (1, "")


def test_output_in_a_poor_encoding_is_no_error() -> None:
    assert run("--help", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C").returncode == 0
