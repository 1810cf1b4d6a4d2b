"""``pelagos bench serving``: how long users of a server wait, and what serving costs beside the engine."""

import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelagos.cli.bench_serving_load import PHASES, Load, measure, text_of
from pelagos.cli.options import Json, Threads, use_threads
from pelagos.common import env
from pelagos.common.errors import ResourceError

if TYPE_CHECKING:
    from pelagos.chat.tokenizer import Tokenizer
    from pelagos.model.transformer import Model

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A checkpoint folder or a preset to serve; with --url, a name there. Default: tiny; the server's first.",
    ),
]
Url = Annotated[str | None, typer.Option(help="A server that runs. Default: one of our own in this process.")]
Key = Annotated[str | None, typer.Option(help="The API key, if the server at --url wants one.")]
Requests = Annotated[int, typer.Option(min=1, max=1 << 20, help="Requests of each round.")]
AtOnce = Annotated[int, typer.Option(min=1, max=4096, help="Requests at once.")]
PromptTokens = Annotated[int, typer.Option(min=1, max=1 << 20, help="Tokens of each prompt.")]
MaxTokens = Annotated[int, typer.Option(min=2, max=1 << 20, help="Tokens of each answer.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of the random prompts. Default: another one each time.")]


def bench_serving_command(
    model: ModelName = None,
    url: Url = None,
    key: Key = None,
    requests: Requests = 32,
    at_once: AtOnce = 8,
    prompt_tokens: PromptTokens = 512,
    max_tokens: MaxTokens = 64,
    seed: Seed = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Stream text completions of random prompts, so many at once: cold, warm (the same prompts again), and restored
    (the same prompts, each with a quarter more behind it, so that only that is read).

    Reports the time to the first token, between tokens and in all, and tokens per second; before that, the time to the
    first byte of an idle server. Without --url the server runs in this process, its clients in another one, and the
    same work through the engine alone shows what serving costs. --json prints all of it.
    """
    load = Load(
        num_requests=requests,
        at_once=at_once,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        seed=random.SystemRandom().getrandbits(48) if seed is None else seed,
    )
    if url is not None:
        report = asyncio.run(measure(url, key, model, load))
    else:
        report = _own_server(model or "tiny", load, threads)
    typer.echo(json.dumps(report) if as_json else text_of(report))


def _own_server(name: str, load: Load, threads: int | None) -> dict[str, Any]:
    """The report of a server in this process, and of the engine without one."""
    from pelagos.engine.config import EngineConfig
    from pelagos.engine.engine import Engine
    from pelagos.model.transformer import Model
    from pelagos.serving.config import ServingConfig
    from pelagos.serving.embedded import serving

    num_threads = use_threads(threads)
    model = Model.load(name)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _tokenizer(name, Path(folder))
        engine = Engine(model, EngineConfig(max_running=load.at_once, max_waiting=max(1024, load.at_once)))
        config = ServingConfig(port=0, model_name=name, drain_seconds=0.0)
        log = logging.getLogger("pelagos.serving")
        level = log.level
        log.setLevel(logging.WARNING)  # a line for each request says nothing here
        try:
            with serving(engine, tokenizer, config) as running:
                report = _measured_by_another_process(running.url, load)
        finally:
            log.setLevel(level)
    report["threads"] = num_threads
    report["engine_alone"] = alone = _engine_alone(model, load)
    report["serving_cost"] = {
        phase: report[phase]["seconds"] / seconds for phase, seconds in alone.items() if phase in report
    }
    return report


def _measured_by_another_process(url: str, load: Load) -> dict[str, Any]:
    """Clients do not live in the process of their server, where they would take time from it."""
    command = [sys.executable, "-m", "pelagos", "bench", "serving", "--url", url, "--json", *load.as_options()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, env.THREADS.name: "1"})
    if done.returncode != 0:
        raise ResourceError("the clients failed: see above")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _engine_alone(model: "Model", load: Load) -> dict[str, float]:
    """Seconds of each round, all requests there from the start and the engine doing ``at_once`` at a time."""
    from pelagos.engine.config import EngineConfig
    from pelagos.engine.engine import Engine
    from pelagos.engine.params import SamplingParams
    from pelagos.engine.request import Request

    engine = Engine(model, EngineConfig(max_running=load.at_once))
    params = SamplingParams(max_tokens=load.max_tokens, ignore_eos=True, temperature=0.0)
    engine.generate([Request(prompt_ids=load.prompt(-1), params=params)])
    seconds = {}
    for phase in PHASES:
        prompts = [load.prompt_in(phase, number) for number in range(load.num_requests)]
        work = [Request(prompt_ids=prompt, params=params) for prompt in prompts]
        started = time.perf_counter()
        engine.generate(work)
        seconds[phase] = time.perf_counter() - started
    return seconds


def _tokenizer(name: str, folder: Path) -> "Tokenizer":
    """The model's own, one of bytes for a preset: prompts are ids, so it only turns answers into text."""
    from pelagos.chat.byte_vocabulary import write_byte_tokenizer
    from pelagos.chat.tokenizer import Tokenizer

    return Tokenizer.from_folder(name) if Path(name).is_dir() else write_byte_tokenizer(folder)
