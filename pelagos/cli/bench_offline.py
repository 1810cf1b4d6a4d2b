"""``pelagos bench offline``: how fast the engine works through many requests, without a server."""

import json
import random
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelagos.cli.options import MODEL_HELP, Json, Threads, use_threads
from pelagos.cli.progress import PatientBar

if TYPE_CHECKING:
    from pelagos.engine.request import Finished, Request

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Requests = Annotated[int, typer.Option(min=1, max=1 << 20, help="Requests, all there from the start.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")]
Shared = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of each prompt that all have in common.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of each answer.")]
Running = Annotated[int, typer.Option(min=1, max=4096, help="Requests worked on at once.")]
Drafts = Annotated[int, typer.Option(min=0, max=3, help="Tokens guessed per step where that pays; 0: none.")]
CacheMib = Annotated[int | None, typer.Option(min=1, help="Memory for rows, MiB. Default: a quarter of what is free.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the random prompts.")]


def bench_offline_command(
    model: ModelName = "tiny",
    requests: Requests = 16,
    prompt_tokens: PromptTokens = 512,
    shared: Shared = 0.0,
    max_tokens: MaxTokens = 128,
    running: Running = 64,
    drafts: Drafts = 1,
    cache_mib: CacheMib = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Give the engine random prompts and greedy answers of fixed length, and report tokens per second and times.

    --json prints model, num_requests, seconds, tokens per second (all, read, written), seconds to the first token and
    between tokens (median and 90th percentile), and the engine's own counts.
    """
    from pelagos.engine.config import EngineConfig
    from pelagos.engine.engine import Engine
    from pelagos.model.transformer import Model

    num_threads = use_threads(threads)
    loaded = Model.load(model)
    cache_bytes = None if cache_mib is None else cache_mib << 20
    engine = Engine(loaded, EngineConfig(cache_bytes=cache_bytes, max_running=running, draft_tokens=drafts))
    work = _requests(loaded.config.vocab_size, requests, prompt_tokens, shared, max_tokens, random.Random(seed))
    bar = PatientBar("requests")
    try:
        finished = engine.generate(work, on_progress=bar.show)
    finally:
        bar.stop()
    name = Path(model).name if Path(model).is_dir() else model
    report = {"model": name, "threads": num_threads, **_report(finished), "engine": asdict(engine.stats())}
    typer.echo(json.dumps(report) if as_json else _text(report))


def _requests(
    vocab_size: int, number: int, length: int, shared: float, max_tokens: int, rng: random.Random
) -> "list[Request]":
    from pelagos.engine.params import SamplingParams
    from pelagos.engine.request import Request

    stem = [rng.randrange(vocab_size) for _ in range(round(length * shared))]
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    prompts = [[*stem, *(rng.randrange(vocab_size) for _ in range(length - len(stem)))] for _ in range(number)]
    return [Request(prompt_ids=prompt, params=params) for prompt in prompts]


def _report(finished: "list[Finished]") -> dict[str, Any]:
    seconds = max(one.times.finished for one in finished)
    num_read = sum(one.usage.num_prompt_tokens for one in finished)
    num_written = sum(one.usage.num_generated for one in finished)
    first = [one.times.first_token for one in finished if one.times.first_token is not None]
    between = [
        (one.times.finished - one.times.first_token) / (one.usage.num_generated - 1)
        for one in finished
        if one.times.first_token is not None and one.usage.num_generated > 1
    ]
    return {
        "num_requests": len(finished),
        "seconds": seconds,
        "tokens_per_second": (num_read + num_written) / seconds,
        "written_tokens_per_second": num_written / seconds,
        "cached_share": sum(one.usage.num_cached for one in finished) / num_read,
        "seconds_to_first_token": _spread(first),
        "seconds_between_tokens": _spread(between),
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "p90": ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]}


def _text(report: dict[str, Any]) -> str:
    first, between = report["seconds_to_first_token"], report["seconds_between_tokens"]
    name, seconds, threads = report["model"], report["seconds"], report["threads"]
    lines = [
        f"{report['num_requests']} requests to {name}: {seconds:.2f} s on {threads} threads",
        f"{report['tokens_per_second']:,.0f} tokens/s in all, {report['written_tokens_per_second']:,.0f} written",
        f"{report['cached_share']:.0%} of the prompts' tokens were found in the cache",
        f"first token after {first['median']:.3f} s (median), {first['p90']:.3f} s (90 %)",
    ]
    if between:
        lines.append(
            f"{1000 * between['median']:.2f} ms between tokens (median), {1000 * between['p90']:.2f} ms (90 %)"
        )
    drafted = report["engine"]["num_drafted"]
    if drafted:
        lines.append(f"{report['engine']['num_accepted'] / drafted:.0%} of {drafted} guessed tokens were right")
    return "\n".join(lines)
