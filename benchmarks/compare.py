"""Pelagos against llama.cpp and transformers: the same weights, the same cores, in turns.

    python benchmarks/compare.py MODEL PEERS [--measures decode@128,prefill@512] [--quick]
    python benchmarks/compare.py MODEL PEERS --check

MODEL is a folder of benchmarks/models.py, PEERS one of benchmarks/peers.py. A measure is

    prefill@N    tokens per second of reading a prompt of N tokens
    decode@N     tokens per second behind a context of N tokens
    batchB@N     the same for B sequences at once, their sum

Every engine has a process of its own and sleeps while another has its turn, so whatever slows the machine down slows
all of them. A sample counts if the process's threads waited less than 5 % of its time for a core; the median of those
is the result. Where none counts, the fastest sample stands in its place, marked ~: others were using the cores.
An engine can be given another format behind a colon: pelagos:float32, llama.cpp:float32, transformers:bfloat16. Without
one Pelagos runs the official format, llama.cpp MXFP4 with Q8_0, transformers float32. pelagos:rounded rounds inputs of
products, rows and queries as the released models are served, where pelagos keeps them in float32; llama.cpp rounds
inputs to 8 bits. Which format of transformers is the faster one depends on whether the processor multiplies bfloat16.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine_record
from peers import peers_python

from pelagos.cli.options import use_threads
from pelagos.model.config_json import read_config

HERE = Path(__file__).resolve().parent
MEASURES = "decode@128,prefill@512,prefill@4096,decode@4096,prefill@32768,decode@32768,batch4@128"
ENGINES = "pelagos,llama.cpp,transformers,transformers:bfloat16"
QUICK_MEASURES = "decode@128,prefill@512,batch4@128"
MAX_WAITED = 0.05  # of a sample's time
TOKENS = 32  # of a decode sample: what waking up costs is spread over them, and each holds rows of every CSA layer
LONG_SECONDS = 15.0  # one such sample is enough
TOLERANCE = 1e-4  # of float32 logits
SAME_TOKENS = 0.95  # of the positions behind the first ones


@dataclass(frozen=True, kw_only=True)
class Measure:
    name: str
    is_prefill: bool
    batch: int
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens of a sample."""
        return self.length if self.is_prefill else TOKENS * self.batch


@dataclass(kw_only=True)
class Samples:
    """Seconds of one engine in one measure."""

    clean: list[float] = field(default_factory=list)
    every: list[float] = field(default_factory=list)

    def add(self, answer: dict[str, Any]) -> None:
        self.every.append(answer["seconds"])
        if answer["waited"] is None or answer["waited"] < MAX_WAITED * answer["seconds"]:
            self.clean.append(answer["seconds"])

    def result(self, num_tokens: int) -> dict[str, Any]:
        used = self.clean or [min(self.every)]
        return {
            "tokens_per_second": round(num_tokens / statistics.median(used), 2),
            "clean": len(self.clean),
            "samples": len(self.every),
            "spread": round(max(used) / min(used), 2),
        }


class Worker:
    """An engine's process."""

    def __init__(self, name: str, model: Path, peers: Path, threads: int) -> None:
        engine, _, dtype = name.partition(":")
        path = model / _place(engine, dtype)
        if not path.exists():
            raise SystemExit(f"{name} needs {path}: make it with benchmarks/models.py")
        python = sys.executable if engine == "pelagos" else str(peers_python(peers))
        # -P: transformers looks for a package called kernels, and must not find our file of that name
        command = [python, "-P", str(HERE / "engines.py"), engine, str(path), "--threads", str(threads)]
        command += ["--dtype", dtype] if dtype else []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.version: str = self._answer()["version"]
        self.filled: tuple[int, int] | None = None  # length and batch of its sequences

    def ask(self, **task: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def prefill(self, length: int, batch: int, *, synthetic: bool) -> dict[str, Any]:
        answer = self.ask(do="prefill", length=length, batch=batch, synthetic=synthetic)
        self.filled = (length, batch)
        return answer

    def decode(self) -> dict[str, Any]:
        self.filled = None
        return self.ask(do="decode", tokens=TOKENS)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} stopped with exit status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _place(engine: str, dtype: str) -> str:
    """What an engine reads, in the model's folder."""
    if engine == "llama.cpp":
        return f"{dtype or 'model'}.gguf"
    return "official" if engine == "pelagos" and dtype in ("", "rounded") else "transformers"


@contextlib.contextmanager
def started(names: list[str], options: argparse.Namespace, threads: int) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for name in names:
            workers.append(Worker(name, options.model, options.peers, threads))
            print(f"{name}: {workers[-1].version}", file=sys.stderr, flush=True)
        yield workers
    finally:
        for worker in workers:
            worker.stop()


class Quiet:
    """Waits for moments in which nobody else uses the cores, ``budget`` seconds in all."""

    def __init__(self, budget: float) -> None:
        self._budget = budget

    def wait(self) -> None:
        """Long enough, in any case, for the threads of the engine before to stop spinning."""
        begin = time.perf_counter()
        while True:
            busiest = 0
            for _ in range(5):
                time.sleep(0.02)
                busiest = max(busiest, _num_running())
            if busiest <= 1 or time.perf_counter() - begin > self._budget:  # this process itself is one
                break
        self._budget -= time.perf_counter() - begin


def _num_running() -> int:
    """Threads of the whole machine that run or are ready to; 0 where the system does not say."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("procs_running"))


def take(measure: Measure, workers: list[Worker], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Samples of all engines, in turns, until each has enough clean ones or the time is up."""
    quiet, samples = Quiet(options.quiet_wait), {worker.name: Samples() for worker in workers}
    wanted = 1 if options.quick else (3 if measure.is_prefill else 16)
    synthetic = {}
    if measure.is_prefill:
        for worker in workers:
            worker.prefill(min(measure.length, 256), 1, synthetic=False)  # warms up
    else:
        for worker in workers:
            synthetic[worker.name] = _fill(worker, measure)
            worker.decode()
    end = time.perf_counter() + options.limit
    while True:
        for worker in workers:
            quiet.wait()
            answer = worker.prefill(measure.length, 1, synthetic=False) if measure.is_prefill else worker.decode()
            samples[worker.name].add(answer)
        enough = all(
            len(each.clean) >= wanted or (each.clean and each.clean[0] > LONG_SECONDS) for each in samples.values()
        )
        if enough or time.perf_counter() > end or (options.quick and len(samples[workers[0].name].every) >= 2):
            break
    results = {name: each.result(measure.num_tokens) for name, each in samples.items()}
    for name, is_synthetic in synthetic.items():
        results[name]["synthetic_context"] = is_synthetic
    return results


def _fill(worker: Worker, measure: Measure) -> bool:
    """Make the context of a decode measure, unless the prefill measured before left it; whether it is partly random."""
    if worker.filled == (measure.length, measure.batch):
        return False
    return bool(worker.prefill(measure.length, measure.batch, synthetic=True)["synthetic"])


def check(options: argparse.Namespace, threads: int) -> bool:
    """Whether float32 logits agree.

    Strict where an indexer still sees every row. Behind that, another row of nearly the same score may be chosen, and
    logits then differ without a mistake: there the likeliest token must nearly always be the same.
    """
    ours, names, is_right = "pelagos:float32", ["transformers"], True
    if (options.model / _place("llama.cpp", "float32")).exists():
        names.append("llama.cpp:float32")
    config = read_config(options.model / "transformers")
    exact = config.index_topk * min(layer.ratio for layer in config.layers if layer.kind == "csa")
    length = 2 * exact
    with started([ours, *names], options, threads) as workers, tempfile.TemporaryDirectory() as folder:
        logits = {}
        for worker in workers:
            path = Path(folder) / f"{len(logits)}.npy"
            worker.ask(do="logits", length=length, path=str(path))
            logits[worker.name] = np.load(path)
    for name in names:
        apart = np.abs(logits[ours] - logits[name]).max(-1)
        early, late, most = float(apart[:exact].max()), float(np.median(apart[exact:])), float(apart[exact:].max())
        same = float((logits[ours].argmax(-1) == logits[name].argmax(-1))[exact:].mean())
        is_right &= early < TOLERANCE and same > SAME_TOKENS
        print(f"pelagos and {name}, largest difference at a position:")
        print(f"  first {exact} positions: at most {early:.1e}")
        print(f"  next {exact}: median {late:.1e}, at most {most:.1e}; same likeliest token at {same:.1%}")
    print(f"logits {'agree' if is_right else 'DIFFER'} (tolerances {TOLERANCE:g} and {SAME_TOKENS:.0%})")
    return is_right


def show(measure: Measure, results: dict[str, dict[str, Any]], ratio: float | None) -> str:
    """A line of the table."""
    cells = []
    for result in results.values():
        marks = ("" if result["clean"] else "~", "*" if result.get("synthetic_context") else "")
        cells.append(f"{marks[0]}{result['tokens_per_second']:.1f}{marks[1]}")
    return _line(measure.name, cells, "-" if ratio is None else f"{ratio:.2f}")


def _line(name: str, cells: list[str], ratio: str) -> str:
    return f"{name:14}{''.join(f'{cell:>23}' for cell in cells)}{ratio:>9}"


def ratio_of(results: dict[str, dict[str, Any]]) -> float | None:
    """The first engine's speed over that of the best other one; None for an engine alone."""
    first, *others = (result["tokens_per_second"] for result in results.values())
    return round(first / max(others), 3) if others else None


def parse_measure(text: str) -> Measure:
    match = re.fullmatch(r"(prefill|decode|batch([1-9]\d*))@([1-9]\d*)", text)
    if match is None:
        raise SystemExit(f"a measure is prefill@N, decode@N or batchB@N, not {text!r}")
    return Measure(name=text, is_prefill=match[1] == "prefill", batch=int(match[2] or 1), length=int(match[3]))


def compare(options: argparse.Namespace, threads: int) -> None:
    texts = options.measures or (QUICK_MEASURES if options.quick else MEASURES)
    measures = [parse_measure(text) for text in texts.split(",")]
    out = options.out or (None if options.quick else HERE / "results" / "compare.jsonl")
    machine = machine_record(threads)
    print(json.dumps(machine), file=sys.stderr)
    with started(options.engines.split(","), options, threads) as workers:
        versions = {worker.name: worker.version for worker in workers}
        print(_line("tokens/s", list(versions), "ratio"))
        for measure in measures:
            results = take(measure, workers, options)
            ratio = ratio_of(results)
            print(show(measure, results, ratio), flush=True)
            if out:
                record = {"model": options.model.name, "measure": measure.name, "ratio": ratio, "engines": results}
                with out.open("a") as file:
                    file.write(json.dumps(record | {"machine": machine, "versions": versions}) + "\n")
    print("ratio: the first engine to the best other one; ~ no clean sample; * context partly random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("peers", type=Path)
    parser.add_argument("--engines", default=ENGINES, help="in order; ratios are of the first")
    parser.add_argument("--measures", default=None, help=f"default: {MEASURES}; with --quick: {QUICK_MEASURES}")
    parser.add_argument("--threads", type=int, default=None, help="of each engine; default: one per usable core")
    parser.add_argument("--quick", action="store_true", help="one or two samples each, to see that everything runs")
    parser.add_argument("--check", action="store_true", help="compare float32 logits in place of speed")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for the samples of a measure")
    parser.add_argument("--quiet-wait", type=float, default=60.0, help="seconds a measure may wait for free cores")
    parser.add_argument(
        "--out", type=Path, help="append results here; default: results/compare.jsonl, none with --quick"
    )
    options = parser.parse_args()
    threads = use_threads(options.threads)
    if options.check:
        raise SystemExit(0 if check(options, threads) else 1)
    compare(options, threads)


if __name__ == "__main__":
    main()
