"""``pelagos generate``: options to parameters, prompts to ids, and what is written where."""

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from byte_model import write_byte_model

from pelagos.chat.effort import LAUNCH, save_effort_levels
from pelagos.chat.render import render
from pelagos.chat.tokenizer import IncrementalDecoder, Tokenizer
from pelagos.cli import generate as command
from pelagos.cli.main import main
from pelagos.engine import offline
from pelagos.engine.offline import Generation, Progress, Timings, Token, generate
from pelagos.engine.params import SamplingParams
from pelagos.engine.sampler import Sampled
from pelagos.model.transformer import Model

RANDOM = "pelagos: preset tiny has random weights: its output means nothing\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("model"))


@dataclasses.dataclass
class Spy:
    """What the command gave to the model and the engine."""

    load: tuple[Any, ...] = ()
    prompt_ids: list[int] = dataclasses.field(default_factory=list)
    params: SamplingParams | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Replace model and engine by records of how they were called, with an output of three tokens."""
    seen = Spy()

    def load(*arguments: Any, **options: Any) -> object:
        seen.load = (*arguments, options)
        return SimpleNamespace()

    def stream(
        model: object, prompt_ids: list[int], params: SamplingParams, decoder: object, **options: Any
    ) -> Iterator[Progress | Token | Generation]:
        seen.prompt_ids, seen.params, seen.options = prompt_ids, params, options
        tokens = [Sampled(token_id=i) for i in (5, 6, 7)]
        timings = Timings(prefill_seconds=2.0, decode_seconds=0.5, num_prefill_tokens=4, num_decode_tokens=2)
        yield Progress(num_read=4, num_prompt_tokens=4)
        yield from (Token(sampled=token, text=f"<{token.token_id}>") for token in tokens)
        yield Generation(
            tokens=tuple(tokens),
            text=None if decoder is None else "<5><6><7>",
            finish_reason="stop",
            stop_string=None,
            timings=timings,
            state_bytes=99,
            seed=13,
        )

    monkeypatch.setattr(Model, "load", load)
    monkeypatch.setattr(offline, "generate_stream", stream)
    return seen


def test_defaults_are_those_of_the_engine(spy: Spy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "tiny", "--prompt-tokens", "1, 2,3"]) == 0
    assert spy.params == SamplingParams()
    assert spy.prompt_ids == [1, 2, 3]
    assert spy.load == ("tiny", "cpu", None, {"official_rounding": None})
    assert spy.options == {"prefill_chunk": 512}
    output = capsys.readouterr()
    assert output.out == "5,6,7\n"
    assert output.err == RANDOM + ("pelagos: 3 tokens at 4 tokens/s, ended by stop, prompt 4 tokens at 2 tokens/s\n")


def test_every_option_reaches_its_parameter(spy: Spy, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--max-tokens 9 --temperature 0.5 --top-p 0.9 --top-k 40 --min-p 0.1 --repetition-penalty 1.1 "
        "--presence-penalty -1 --frequency-penalty 2 --seed 7 --stop a --stop b --logprobs 3 --ignore-eos --json "
        "--device cpu --dtype bfloat16 --rounding official --threads 1 --prefill-chunk 8"
    )
    assert main(["generate", str(folder), "--prompt", "x", *options.split()]) == 0
    assert spy.params == SamplingParams(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        seed=7,
        stop=("a", "b"),
        logprobs=3,
        ignore_eos=True,
    )
    assert spy.load == (str(folder), "cpu", torch.bfloat16, {"official_rounding": True})
    assert spy.options == {"prefill_chunk": 8}
    assert torch.get_num_threads() == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("word", "value"), [("auto", None), ("official", True), ("off", False)])
def test_rounding_words(word: str, value: bool | None, spy: Spy) -> None:
    assert main(["generate", "tiny", "--prompt-tokens", "1", "--rounding", word]) == 0
    assert spy.load[-1] == {"official_rounding": value}


def test_options_and_help_come_from_the_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(SamplingParams):
        if field.name not in ("stop_ids", "logit_bias", "allowed_ids"):  # lists of ids, for programs
            assert f"--{field.name.replace('_', '-')} " in text


def test_a_text_starts_a_document_wherever_it_comes_from(
    spy: Spy, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Tief im Ozean \U0001f41f\r\n"
    tokenizer = Tokenizer.from_folder(folder)
    expected = [tokenizer.bos_id, *tokenizer.encode(text)]
    file = tmp_path / "prompt.txt"
    file.write_bytes(text.encode())
    for options in (["--prompt", text], ["--prompt-file", str(file)], ["--prompt-file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        spy.prompt_ids = []
        assert main(["generate", str(folder), *options]) == 0
        assert spy.prompt_ids == expected
    assert main(["generate", str(folder), "--prompt", ""]) == 0
    assert spy.prompt_ids == [tokenizer.bos_id]


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--no-thinking"], {"thinking": False}),
        (["--effort", "max"], {"effort": "max"}),
        (["--effort", "none"], {"effort": "none"}),
    ],
)
def test_chat_renders_a_turn_of_the_user(
    options: list[str], settings: dict[str, Any], spy: Spy, folder: Path, tmp_path: Path
) -> None:
    for table in (None, LAUNCH):
        model = tmp_path / f"model-{table is not None}"
        model.mkdir()
        (model / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        if table is not None:
            save_effort_levels(table, model)
        tokenizer = Tokenizer.from_folder(model)
        assert main(["generate", str(model), "--chat", "--prompt", "<｜Assistant｜>?", *options]) == 0
        levels = {} if table is None else {"levels": table}
        message = {"role": "user", "content": "<｜Assistant｜>?"}
        assert spy.prompt_ids == render([message], tokenizer, **settings, **levels).token_ids
        assert spy.params is not None
        assert set(spy.params.stop_ids) == tokenizer.stop_ids
        assert main(["generate", str(model), "--chat", "--prompt", "?", "--ignore-eos", *options]) == 0
        assert spy.params.stop_ids == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give exactly one of --prompt, --prompt-file and --prompt-tokens"),
        (["--prompt", "a", "--prompt-tokens", "1"], "give exactly one of"),
        (["--prompt-tokens", "1,x"], "--prompt-tokens must be whole numbers with commas, got 'x' at place 1"),
        (["--prompt-tokens", ""], "got '' at place 0"),
        (["--prompt-tokens", "1,-2"], "got '-2' at place 1"),
        (["--prompt-tokens", "1", "--chat"], "--chat needs --prompt or --prompt-file"),
        (["--prompt", "a", "--effort", "max"], "--effort and --no-thinking need --chat"),
        (["--prompt", "a", "--no-thinking"], "--effort and --no-thinking need --chat"),
        (["--prompt", "a", "--logprobs", "1"], "--logprobs needs --json"),
        (["--prompt-file", "/no/such/file"], "--prompt-file /no/such/file cannot be read: No such file or directory"),
        (["--prompt-file", "/"], "--prompt-file / cannot be read: Is a directory"),
        (["--prompt", "a", "--top-p", "0"], "top_p must be above 0, got 0"),
        (["--prompt", "a", "--temperature", "nan"], "Invalid value for '--temperature'"),
        (["--prompt", "a", "--seed", "-1"], "Invalid value for '--seed'"),
        (["--prompt", "a", "--stop", ""], "stop must be at most 16 texts"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["generate", "tiny", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin").write_bytes("Grüße".encode("latin-1"))
    assert main(["generate", "tiny", "--prompt-file", str(tmp_path / "latin")]) == 2
    assert "is not UTF-8 text: bad byte at 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "text"], "tiny has no tokenizer.json: give --prompt-tokens in place of a text"),
        (["--prompt-tokens", "1,512"], "prompt token 1 must be a whole number from 0 to 511, got 512"),
        (["--prompt-tokens", "1", "--stop", "x"], "stop needs the text of the output"),
        (["--prompt-tokens", "1", "--device", "cpu:1"], "device must be cpu"),
    ],
)
def test_a_model_without_tokenizer_takes_ids_alone(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "tiny", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_an_unknown_effort_lists_the_known_ones(folder: Path, spy: Spy, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "--prompt", "a", "--chat", "--effort", "extreme"]) == 2
    assert "effort must be one of none, minimal, low" in capsys.readouterr().err


def test_text_and_json_agree_with_the_engine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--max-tokens 12 --temperature 1 --seed 3 --ignore-eos"
    arguments = ["generate", str(folder), "--prompt", "Ab", *options.split()]
    model, tokenizer = Model.load(folder), Tokenizer.from_folder(folder)
    prompt = [tokenizer.bos_id, *tokenizer.encode("Ab")]
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=12, logprobs=2, ignore_eos=True)
    expected = generate(model, prompt, params, IncrementalDecoder(tokenizer))
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert output.out == f"{expected.text}\n"
    assert output.err.endswith("seed 3\n")
    assert main([*arguments, "--json", "--logprobs", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    timing = report.pop("timing")
    assert timing["prefill_tokens_per_second"] == pytest.approx(3 / timing["prefill_seconds"])
    assert timing["decode_tokens_per_second"] == pytest.approx(11 / timing["decode_seconds"])
    assert report == {
        "model": str(folder),
        "text": expected.text,
        "token_ids": expected.token_ids,
        "logprobs": [
            {
                "token_id": token.token_id,
                "logprob": token.logprob,
                "top": [{"token_id": i, "logprob": value} for i, value in token.top_logprobs],
            }
            for token in expected.tokens
        ],
        "finish_reason": "length",
        "stop_string": None,
        "prompt_tokens": 3,
        "state_bytes": expected.state_bytes,
        "seed": 3,
    }


def test_a_drawn_seed_is_reported_and_repeats_the_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(folder), "--prompt", "a", "--max-tokens", "8", "--temperature", "1", "--json"]
    reports = []
    for seed in ([], [], ["--seed"]):
        main([*arguments, *seed, *([str(reports[0]["seed"])] if seed else [])])
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["seed"] != reports[1]["seed"]
    assert reports[2]["token_ids"] == reports[0]["token_ids"]
    assert reports[0]["logprobs"] is None


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_thinking_is_dim_in_a_chat_on_a_terminal(
    chat: bool,
    terminal: bool,
    spy: Spy,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(Tokenizer, "encode_special", lambda *_: 6)  # the second of the three tokens ends the thinking
    assert main(["generate", str(folder), "--prompt", "a", *(["--chat"] if chat else [])]) == 0
    expected = "\x1b[2m<5><6>\x1b[0m<7>\x1b[0m\n" if chat and terminal else "<5><6><7>\n"
    assert capsys.readouterr().out == expected


def test_tiny_in_a_process_of_its_own() -> None:
    arguments = ["generate", "tiny", "--prompt-tokens", "1,2,3", "--max-tokens", "5"]
    script = "import sys; from pelagos.cli.main import main; sys.exit(main())"
    process = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    expected = generate(Model.load("tiny"), [1, 2, 3], SamplingParams(max_tokens=5))
    assert process.stdout == ",".join(map(str, expected.token_ids)) + "\n"
    assert process.stderr.startswith(RANDOM)
