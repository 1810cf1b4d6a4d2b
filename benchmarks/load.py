"""Hundreds of streams for minutes: does anything get lost, counted twice, or left behind?

    python benchmarks/load.py [MODEL] [--minutes 5] [--streams 256] [--slow 32] [--leave 0.1] [--out FILE.jsonl]

A server of MODEL (a folder or a name, default nano) in this process, its clients in another. They stream chats and
completions of random sizes, some reading slowly, some leaving in the middle. Afterwards:

    every request to the engine has exactly one end, and the sums of their usage are the engine's counters
    what clients saw of answers that came to their end agrees with it
    nothing is left: no request, no task of the event loop, no thread more than before
    memory is flat: the median of the last quarter of the time is at most 5 % and 8 MiB above that of the second

Prints one line for each, and writes resident memory over time and all counts to --out. Ends with 1 if one fails.
"""

import argparse
import asyncio
import datetime
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pelagos.chat.byte_vocabulary import write_byte_tokenizer
from pelagos.chat.tokenizer import Tokenizer
from pelagos.cli.options import use_threads
from pelagos.cli.stream_client import EventStream, Target, target_of
from pelagos.common.device import describe_machine
from pelagos.common.errors import ResourceError
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.request import Event, Finished, OnEvent, Request
from pelagos.model.places import model_place
from pelagos.model.transformer import Model
from pelagos.serving.config import ServingConfig
from pelagos.serving.embedded import Embedded, serving

CACHE_BYTES = 32 << 20  # full after seconds, so that what grows then is a leak
SAMPLE_SECONDS = 0.5
IDLE_SECONDS = 15.0
WARM_MINUTES = 1.0  # less says nothing about memory: caches fill
GROWTH_SHARE, GROWTH_BYTES = 0.05, 8 << 20
COUNTED = ("num_prompt_tokens", "num_cached", "num_generated")


class Counted:
    """An engine that counts the ends of its requests."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.model = engine.model
        self.start, self.abort, self.stats = engine.start, engine.abort, engine.stats
        self.drain, self.close = engine.drain, engine.close
        self.num_added = 0
        self.num_ends: Counter[int] = Counter()  # requests by how many ends they had
        self.reasons: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, request: Request, on_event: OnEvent | None = None) -> str:
        ends = 0

        def note(event: Event) -> None:
            nonlocal ends
            if isinstance(event, Finished):
                with self._lock:
                    if ends:
                        self.num_ends[ends] -= 1
                    ends += 1
                    self.num_ends[ends] += 1
                    self.reasons[event.answers[0].finish_reason] += 1
                    for name in COUNTED:
                        self.sums[name] += getattr(event.usage, name)
            if on_event is not None:
                on_event(event)

        request_id = self.engine.add(request, note)
        with self._lock:
            self.num_added += 1
        return request_id


# --- the clients ---


async def clients(url: str, seconds: float, streams: int, slow: int, leave: float, seed: int) -> dict[str, Any]:
    """What the clients saw: streams by how they ended, and the tokens of those that came to their end."""
    target = target_of(url)
    end = time.monotonic() + seconds
    seen: Counter[str] = Counter()

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while time.monotonic() < end:
            try:
                seen[await _one(target, rng, number < slow, leave, seen)] += 1
            except ResourceError as error:
                kind = "refused" if "refused with 503" in str(error) else "failed"
                seen[kind] += 1
                if kind == "failed":
                    print(error, file=sys.stderr)
                await asyncio.sleep(rng.random())

    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(client(number))
    return dict(seen)


async def _one(target: Target, rng: random.Random, is_slow: bool, leave: float, seen: Counter[str]) -> str:
    """One stream; how it ended."""
    path, body = _request(rng)
    leaves_after = rng.randrange(1, 20) if rng.random() < leave else None
    usage, last, num_events = None, "", 0
    async with EventStream(target, path, body, buffer_bytes=2048 if is_slow else 1 << 16) as stream:
        async for data in stream:
            num_events += 1
            if leaves_after == num_events:
                return "left"
            if is_slow:
                await asyncio.sleep(0.02)
            last = data
            if '"usage":{' in data:
                usage = json.loads(data)["usage"]
    if last != "[DONE]" or usage is None:
        return "cut"
    seen["prompt_tokens"] += usage["prompt_tokens"]
    seen["completion_tokens"] += usage["completion_tokens"]
    return "whole"


def _request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A chat or a completion; a third of the prompts begin like others, and the rest are new."""
    length = rng.choice((16, 60, 200, 600))
    text = "".join(rng.choices("abcdefgh ", k=length))
    if rng.random() < 0.3:
        text = "the same beginning " * (length // 19) + text[-8:]
    body: dict[str, Any] = {"model": "pelagos", "stream": True, "stream_options": {"include_usage": True}}
    body |= {"max_tokens": rng.choice((4, 30, 100, 250)), "user": f"user {rng.randrange(5)}"}
    if rng.random() < 0.5:
        return "/v1/completions", {**body, "prompt": text}
    return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}


# --- the server ---


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def under_load(running: Embedded, options: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[float, int]]]:
    """What the clients saw, and the memory meanwhile."""
    command = [sys.executable, __file__, "--clients", running.url, "--minutes", str(options.minutes)]
    command += ["--streams", str(options.streams), "--slow", str(options.slow), "--leave", str(options.leave)]
    command += ["--seed", str(options.seed)]
    started = time.monotonic()
    memory: list[tuple[float, int]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            memory.append((round(time.monotonic() - started, 1), resident_bytes()))
            time.sleep(SAMPLE_SECONDS)
        assert process.stdout is not None
        return json.loads(process.stdout.read()), memory


def wait_until_idle(running: Embedded, counted: Counted) -> None:
    """Answers whose clients have left come to their ends now."""
    end = time.monotonic() + IDLE_SECONDS
    while time.monotonic() < end:
        stats = counted.stats()
        if not (stats.num_running or stats.num_waiting or stats.num_paused or running.server.watch.num_running):
            return
        time.sleep(0.05)


def growth(memory: list[tuple[float, int]]) -> tuple[int, int]:
    """Median memory of the second and of the last quarter of the time."""
    quarter = max(1, len(memory) // 4)
    values = [value for _, value in memory]
    return int(statistics.median(values[quarter : 2 * quarter] or values)), int(statistics.median(values[-quarter:]))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The report, with ``checks``: what was looked at, and whether it was as it should be."""
    use_threads(options.threads)
    place = model_place(options.model)
    counted = Counted(Engine(Model.load(place), EngineConfig(cache_bytes=CACHE_BYTES, max_waiting=4096)))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_folder(place) if Path(place).is_dir() else write_byte_tokenizer(Path(folder))
        config = ServingConfig(port=0, keep_alive_seconds=1.0)
        with serving(counted, tokenizer, config) as running:
            num_tasks = running.call(lambda: len(asyncio.all_tasks()))
            num_threads = threading.active_count()
            seen, memory = under_load(running, options)
            wait_until_idle(running, counted)
            stats = counted.stats()
            time.sleep(0.2)  # connections that have just been closed
            left = {
                "requests": stats.num_running + stats.num_waiting + stats.num_paused,
                "calls": running.server.watch.num_running,
                "tasks": running.call(lambda: len(asyncio.all_tasks())) - num_tasks,
                # The pool that prepares requests starts its threads when it needs them.
                "threads": threading.active_count() - num_threads - config.num_preparers - 1,
            }
            page = running.server.watch.page().decode()
    before, after = growth(memory)
    machine = describe_machine()
    engine = {name: getattr(stats, name) for name in COUNTED}
    served = {
        name: sum(
            float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(f"pelagos_{name}_total")
        )
        for name in ("requests", "prompt_tokens", "generated_tokens")
    }
    checks = {
        "one end each": dict(counted.num_ends) in ({1: counted.num_added}, {}),
        "all ended": sum(stats.finished.values()) == counted.num_added == served["requests"],
        "sums are the engine's": {name: counted.sums[name] for name in COUNTED} == engine,
        "sums are the server's": (served["prompt_tokens"], served["generated_tokens"])
        == (engine["num_prompt_tokens"], engine["num_generated"]),
        "clients saw no more": seen.get("completion_tokens", 0) <= engine["num_generated"],
        "no stream was cut": not seen.get("cut") and not seen.get("failed") and bool(seen.get("whole")),
        "nothing is left": all(value <= 0 for value in left.values()),
    }
    if options.minutes >= WARM_MINUTES:
        checks["memory is flat"] = after <= before * (1 + GROWTH_SHARE) + GROWTH_BYTES
    return {
        "date": datetime.date.today().isoformat(),
        **{name: getattr(options, name) for name in ("model", "minutes", "streams", "slow", "leave")},
        "machine": {"processor": machine.processor.model, "usable_cores": machine.num_usable_cores},
        "checks": checks,
        "clients": seen,
        "reasons": dict(counted.reasons),
        "engine": engine,
        "left": left,
        "memory": {"second_quarter": before, "last_quarter": after, "samples": memory},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="nano", metavar="MODEL")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--streams", type=int, default=256, help="at once")
    parser.add_argument("--slow", type=int, default=32, help="of them read slowly")
    parser.add_argument("--leave", type=float, default=0.1, help="share of streams whose client leaves in the middle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="append the report to this file")
    parser.add_argument("--clients", default=None, metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients is not None:
        work = clients(
            options.clients, 60 * options.minutes, options.streams, options.slow, options.leave, options.seed
        )
        print(json.dumps(asyncio.run(work)))
        return 0
    logging.getLogger("pelagos.serving").setLevel(logging.ERROR)
    report = run(options)
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(report) + "\n")
    for name, is_right in report["checks"].items():
        print(f"{'ok' if is_right else 'FAILED':8}{name}")
    memory = report["memory"]
    print(f"memory  {memory['second_quarter'] >> 20} MiB, then {memory['last_quarter'] >> 20} MiB")
    print({name: report[name] for name in ("clients", "reasons", "engine", "left")})
    return 0 if all(report["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
