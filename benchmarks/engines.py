"""One system of a comparison in a process of its own: benchmarks/compare.py starts it and gives it work.

    python benchmarks/engines.py ENGINE MODEL --threads N [--dtype float32]

Reads one JSON object a line and answers with one. Between two lines it sleeps, so that systems can take turns on the
same cores. {"do": "prefill", "length": n, "batch": b} reads n seeded tokens into each of b new sequences and keeps
them; "synthetic": true allows a context whose rows are partly random, where the system has a way to make one.
{"do": "decode", "tokens": k} adds k greedy tokens to each sequence. {"do": "logits", "length": n, "path": p} saves the
logits of n tokens, [n, vocabulary] float32. Times are answered as seconds, waited (seconds that threads of this process
were ready to run and had no core; null where the system does not say) and peak_rss_bytes.
"""

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

CHUNK = 512  # prompt tokens that transformers and llama.cpp read at a time: both are fastest near this
PELAGOS_CHUNK = 2048
REAL_TOKENS = 4096  # of a partly random context
SPARE_TOKENS = 4096  # room for decoding behind a context


class Engine(Protocol):
    """What is measured. Sequences are those of the last ``prefill``."""

    version: str
    vocab_size: int

    def prepare(self, length: int, batch: int) -> None:
        """Make room for sequences; not timed."""

    def prefill(self, rows: list[list[int]]) -> None:
        """Read each row into a new sequence, up to the logits of its last token."""

    def extend(self, length: int) -> None:
        """Pretend that every sequence has this length, with random rows in between."""

    def decode(self) -> None:
        """Add the likeliest token to each sequence and read it."""

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits at every position, [T, V] float32."""


class Pelagos:
    def __init__(self, path: Path, num_threads: int, dtype: str | None) -> None:
        import torch

        import pelagos
        from pelagos.model.transformer import Model

        torch.set_num_threads(num_threads)
        if dtype == "rounded":
            self._model = Model.load(path, official_rounding=True)
        else:
            self._model = Model.load(path, dtype=None if dtype is None else getattr(torch, dtype))
        self.version = f"pelagos {pelagos.__version__}"
        self.vocab_size = self._model.config.vocab_size

    def prepare(self, length: int, batch: int) -> None:
        pass

    def prefill(self, rows: list[list[int]]) -> None:
        self._states = [self._model.new_state() for _ in rows]
        self._next = []
        for row, state in zip(rows, self._states, strict=True):
            for start in range(0, len(row), PELAGOS_CHUNK):
                logits = self._model.step(row[start : start + PELAGOS_CHUNK], state, num_logits=1)
            self._next.append([int(logits[-1].argmax())])

    def extend(self, length: int) -> None:
        raise NotImplementedError

    def decode(self) -> None:
        if len(self._states) == 1:
            logits = [self._model.step(self._next[0], self._states[0], num_logits=1)]
        else:
            logits = self._model.step_batch(self._next, self._states, num_logits=1)
        self._next = [[int(row[-1].argmax())] for row in logits]

    def logits(self, ids: list[int]) -> np.ndarray:
        return self._model.logits(ids).numpy()


class Transformers:
    def __init__(self, path: Path, num_threads: int, dtype: str | None) -> None:
        import torch
        import transformers

        torch.set_num_threads(num_threads)
        torch.set_grad_enabled(False)
        self._torch, self._new_cache = torch, transformers.DynamicCache
        load = transformers.DeepseekV4ForCausalLM.from_pretrained
        self._model = load(path, dtype=getattr(torch, dtype or "float32")).eval()
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.vocab_size = self._model.config.vocab_size

    def prepare(self, length: int, batch: int) -> None:
        pass

    def prefill(self, rows: list[list[int]]) -> None:
        ids = self._torch.tensor(rows)
        self._cache = self._new_cache(config=self._model.config)
        for start in range(0, ids.shape[1], CHUNK):  # in one go it builds scores of every token with every other
            self._read(ids[:, start : start + CHUNK])

    def extend(self, length: int) -> None:
        """Random compressed rows behind the real ones: the time of a step depends on their number alone."""
        for layer in self._cache.layers:
            layer.cumulative_length = length
            for kind, rows in getattr(layer, "compressed_kv", {}).items():
                layer.entry_count[kind] = length // layer.compress_rate
                shape = (rows.shape[0], layer.entry_count[kind] - rows.shape[1], rows.shape[2])
                more = self._torch.randn(shape, dtype=rows.dtype)
                layer.compressed_kv[kind] = self._torch.cat([rows, more], 1)

    def decode(self) -> None:
        self._read(self._next)

    def _read(self, ids: Any) -> None:
        out = self._model(input_ids=ids, cache=self._cache, use_cache=True, logits_to_keep=1)
        self._next = out.logits[:, -1].argmax(-1, keepdim=True)

    def logits(self, ids: list[int]) -> np.ndarray:
        return self._model(input_ids=self._torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


class LlamaCpp:
    def __init__(self, path: Path, num_threads: int, dtype: str | None) -> None:
        import llama_cpp

        self._lib, self._num_threads, self._exact = llama_cpp, num_threads, dtype == "float32"
        self._log = llama_cpp.llama_log_callback(self._on_log)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context, self._room = None, (0, 0)

    @staticmethod
    def _on_log(level: int, text: bytes, _: object) -> None:
        if level == 4:  # errors
            sys.stderr.write(text.decode(errors="replace"))

    def prepare(self, length: int, batch: int) -> None:
        lib = self._lib
        if self._room == (length, batch):
            return
        if self._context:
            lib.llama_free(self._context)
        params = lib.llama_context_default_params()
        params.n_ctx = (length + SPARE_TOKENS) * batch
        params.n_batch, params.n_ubatch, params.n_seq_max = 2048, CHUNK, batch
        params.n_threads = params.n_threads_batch = self._num_threads
        params.swa_full = False  # as its command line has it; the library's default keeps window rows for ever
        if self._exact:
            params.type_k = params.type_v = lib.GGML_TYPE_F32
            params.flash_attn_type = 0
        self._context, self._room = lib.llama_init_from_model(self._model, params), (length, batch)
        assert self._context, "llama.cpp made no context"

    def prefill(self, rows: list[list[int]]) -> None:
        lib = self._lib
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._next = []
        for sequence, row in enumerate(rows):
            for start in range(0, len(row), 2048):
                part = row[start : start + 2048]
                wanted = [start + place == len(row) - 1 for place in range(len(part))]
                self._read([(token, start + i, sequence) for i, token in enumerate(part)], wanted)
            self._next.append(int(self._last_logits(1)[0].argmax()))
        self._position = len(rows[0])

    def extend(self, length: int) -> None:
        raise NotImplementedError

    def decode(self) -> None:
        tokens = [(token, self._position, sequence) for sequence, token in enumerate(self._next)]
        self._read(tokens, [True] * len(tokens))
        self._next = [int(token) for token in self._last_logits(len(tokens)).argmax(-1)]
        self._position += 1

    def logits(self, ids: list[int]) -> np.ndarray:
        self.prepare(len(ids), 1)
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        parts = []
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            self._read([(token, start + i, 0) for i, token in enumerate(part)], [True] * len(part))
            parts.append(self._last_logits(len(part)).copy())
        return np.concatenate(parts)

    def _read(self, tokens: list[tuple[int, int, int]], wanted: list[bool]) -> None:
        """Tokens as (id, position, sequence), and of which the logits are wanted."""
        batch = self._lib.llama_batch_init(len(tokens), 0, 1)
        for place, (token, position, sequence) in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = wanted[place]
        batch.n_tokens = len(tokens)
        status = self._lib.llama_decode(self._context, batch)
        self._lib.llama_batch_free(batch)
        assert status == 0, f"llama_decode answered {status}"

    def _last_logits(self, count: int) -> np.ndarray:
        """Those of the last ``count`` wanted tokens; waits for them."""
        return np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), (count, self.vocab_size))


ENGINES: dict[str, Callable[[Path, int, str | None], Engine]] = {
    "pelagos": Pelagos,
    "llama.cpp": LlamaCpp,
    "transformers": Transformers,
}


def token_ids(engine: Engine, length: int, seed: int) -> list[int]:
    """The same in every process and environment."""
    return random.Random(seed).choices(range(2, engine.vocab_size), k=length)


def work(engine: Engine, task: dict[str, Any]) -> dict[str, Any]:
    if task["do"] == "decode":

        def run() -> None:
            for _ in range(task["tokens"]):
                engine.decode()

        return _timed(run)
    if task["do"] == "logits":
        np.save(task["path"], engine.logits(token_ids(engine, task["length"], 0)))
        return {}
    length, batch = task["length"], task["batch"]
    engine.prepare(length, batch)
    synthetic = task.get("synthetic", False) and length > REAL_TOKENS and isinstance(engine, Transformers)
    rows = [token_ids(engine, REAL_TOKENS if synthetic else length, seed) for seed in range(batch)]
    answer = _timed(lambda: engine.prefill(rows))
    if synthetic:
        engine.extend(length)
    return answer | {"synthetic": synthetic}


def _timed(run: Callable[[], None]) -> dict[str, Any]:
    waited, begin = _waited_seconds(), time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    after = _waited_seconds()
    return {
        "seconds": seconds,
        "waited": None if waited is None or after is None else after - waited,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    }


def _waited_seconds() -> float | None:
    """Seconds that the threads of this process have been ready to run and had no core; Linux counts them."""
    files = list(Path("/proc/self/task").glob("*/schedstat"))
    return sum(int(file.read_text().split()[1]) for file in files) / 1e9 if files else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", default=None)
    options = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not get between the answers
    begin = time.perf_counter()
    engine = ENGINES[options.engine](options.model, options.threads, options.dtype)
    print(json.dumps({"version": engine.version, "load_s": time.perf_counter() - begin}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(work(engine, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
