"""The work of ``pelagos bench serving`` and what is measured of it, against any server of OpenAI's completions."""

import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pelagos.cli.connect_server import find_server
from pelagos.cli.stream_client import EventStream, Target, target_of
from pelagos.common.errors import ResourceError

# Ids that every vocabulary has and none gives a meaning of their own: single bytes here, short pieces elsewhere.
LOW_ID, HIGH_ID = 64, 256
PHASES = ("cold", "warm", "restored")
NEW_SHARE = 0.25  # of a prompt's tokens are new behind it when it is restored
IDLE_REQUESTS = 10
IDLE_PROMPT_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Load:
    """So many requests of the same size, each with a prompt of its own."""

    num_requests: int
    at_once: int
    prompt_tokens: int
    max_tokens: int
    seed: int

    def prompt(self, number: int, length: int | None = None) -> list[int]:
        rng = random.Random(f"{self.seed} {number}")
        return [rng.randrange(LOW_ID, HIGH_ID) for _ in range(length or self.prompt_tokens)]

    def prompt_in(self, phase: str, number: int) -> list[int]:
        """The same when cold and when warm; restored, it goes on, and what is known of it is taken up at its end."""
        prompt = self.prompt(number)
        if phase != "restored":
            return prompt
        return prompt + self.prompt(number + self.num_requests, max(1, int(NEW_SHARE * self.prompt_tokens)))

    def as_options(self) -> list[str]:
        """The same as options of the command."""
        return [
            *("--requests", str(self.num_requests), "--at-once", str(self.at_once), "--seed", str(self.seed)),
            *("--prompt-tokens", str(self.prompt_tokens), "--max-tokens", str(self.max_tokens)),
        ]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One request: seconds to the first byte, the first token, the end; between pieces of text; tokens."""

    first_byte: float
    first_token: float
    whole: float
    gaps: list[float]
    num_prompt: int
    num_cached: int
    num_generated: int

    @property
    def per_token(self) -> float:
        return (self.whole - self.first_token) / max(1, self.num_generated - 1)


async def measure(url: str, key: str | None, model: str | None, load: Load) -> dict[str, Any]:
    """The report. ``model``: its name there; None: the server's first. Raises UsageError for a bad URL, ResourceError
    if the server refuses."""
    target = target_of(url, key)
    name = model or (await asyncio.to_thread(find_server, url, None, key)).model
    idle = [
        await _timed(target, name, load.prompt(-1 - number, IDLE_PROMPT_TOKENS), 2) for number in range(IDLE_REQUESTS)
    ]
    report: dict[str, Any] = {
        "model": name,
        "num_requests": load.num_requests,
        "at_once": load.at_once,
        "prompt_tokens": load.prompt_tokens,
        "max_tokens": load.max_tokens,
        "seed": load.seed,
        "idle": {
            "seconds_to_first_byte": _spread([one.first_byte for one in idle]),
            "seconds_to_first_token": _spread([one.first_token for one in idle]),
        },
    }
    for phase in PHASES:
        started = time.perf_counter()
        timed = await _round(target, name, load, phase)
        report[phase] = _phase(timed, time.perf_counter() - started)
    return report


async def _round(target: Target, name: str, load: Load, phase: str) -> list[Timed]:
    """All requests, ``at_once`` at a time."""
    places = asyncio.Semaphore(load.at_once)

    async def one(number: int) -> Timed:
        async with places:
            return await _timed(target, name, load.prompt_in(phase, number), load.max_tokens)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(load.num_requests)]
    return [task.result() for task in tasks]


async def _timed(target: Target, name: str, prompt: list[int], max_tokens: int) -> Timed:
    body = {"model": name, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    times: list[float] = []
    usage: dict[str, Any] | None = None
    async with EventStream(target, "/v1/completions", body) as stream:
        async for data in stream:
            if data == "[DONE]":
                break
            event = json.loads(data)
            if "error" in event:
                raise ResourceError(f"the server ended an answer: {event['error'].get('message')}")
            if event.get("choices"):
                times.append(time.perf_counter())
            usage = event.get("usage") or usage
    if usage is None or not times:
        raise ResourceError("the server sent no text or no usage: its streams cannot be measured")
    details = usage.get("prompt_tokens_details") or {}
    return Timed(
        first_byte=stream.first_byte - stream.sent,
        first_token=times[0] - stream.sent,
        whole=times[-1] - stream.sent,
        gaps=[later - earlier for earlier, later in itertools.pairwise(times)],
        num_prompt=usage["prompt_tokens"],
        num_cached=details.get("cached_tokens") or 0,
        num_generated=usage["completion_tokens"],
    )


def _phase(timed: Sequence[Timed], seconds: float) -> dict[str, Any]:
    num_prompt = sum(one.num_prompt for one in timed)
    num_generated = sum(one.num_generated for one in timed)
    return {
        "seconds": seconds,
        "requests_per_second": len(timed) / seconds,
        "written_tokens_per_second": num_generated / seconds,
        "tokens_per_second": (num_prompt + num_generated) / seconds,
        "num_generated": num_generated,
        "cached_share": sum(one.num_cached for one in timed) / num_prompt,
        "seconds_to_first_byte": _spread([one.first_byte for one in timed]),
        "seconds_to_first_token": _spread([one.first_token for one in timed]),
        "seconds_per_token": _spread([one.per_token for one in timed]),
        "seconds_between_pieces": _spread([gap for one in timed for gap in one.gaps]),
        "seconds_per_request": _spread([one.whole for one in timed]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    places = {"p90": 0.9, "p99": 0.99}
    tails = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in places.items()}
    return {"median": statistics.median(ordered), **tails, "max": ordered[-1]}


def text_of(report: dict[str, Any]) -> str:
    """The report for people: times as median / 90 % / 99 % in milliseconds."""
    load = f"{report['num_requests']} requests to {report['model']}, {report['at_once']} at once"
    sizes = f"prompts of {report['prompt_tokens']} and answers of {report['max_tokens']} tokens"
    idle = report["idle"]
    lines = [
        f"{load}, {sizes}; times in ms: median, 90 %, 99 %",
        f"idle     first byte {_ms(idle['seconds_to_first_byte'])}   first token {_ms(idle['seconds_to_first_token'])}",
    ]
    for phase in PHASES:
        one = report[phase]
        lines += [
            f"{phase:<8} {one['tokens_per_second']:,.0f} tokens/s, {one['written_tokens_per_second']:,.0f} written, "
            f"{one['requests_per_second']:.1f} requests/s, {one['cached_share']:.0%} of the prompts cached",
            f"         first token {_ms(one['seconds_to_first_token'])}   per token {_ms(one['seconds_per_token'])}   "
            f"between pieces {_ms(one['seconds_between_pieces'])}",
        ]
    if cost := report.get("serving_cost"):
        lines.append(
            "cost     "
            + ", ".join(f"{phase} {value:.2f} times the engine alone" for phase, value in cost.items())
            + " (clients share the machine)"
        )
    return "\n".join(lines)


def _ms(spread: dict[str, float]) -> str:
    return " ".join(f"{1000 * spread[name]:.2f}" for name in ("median", "p90", "p99")) if spread else "-"
