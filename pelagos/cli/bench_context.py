"""``pelagos bench context``: how well a model finds a fact again in a long text, by length and depth."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pelagos.cli.options import Device, Json, Threads, use_threads
from pelagos.cli.progress import PatientBar
from pelagos.common.errors import UsageError
from pelagos.model.places import model_place

if TYPE_CHECKING:
    from pelagos.training.evaluation import RecallReport
    from pelagos.training.recall import RecallConfig
    from pelagos.training.tasks import TextSource

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="The folder of a checkpoint with tokenizer.json, or nano (built in).")
]
Lengths = Annotated[str, typer.Option(help="Lengths of the whole text with commas, tokens.")]
Depths = Annotated[str, typer.Option(help="Depths of the fact with commas, percent: 0 is the start, 100 the end.")]
Samples = Annotated[int, typer.Option(min=1, help="Texts per length and depth.")]
Together = Annotated[
    bool,
    typer.Option(
        "--together",
        help="One text with a fact at every depth in place of a text for each: read once, asked per depth.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Hide the facts in the held-out text of this prepared folder, not random words."),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write recall.png, a heat map (needs matplotlib), and recall.json.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of texts, facts and questions.")]


def bench_context_command(
    model: ModelName,
    lengths: Lengths = "1024,2048,4096",
    depths: Depths = "0,25,50,75,100",
    samples: Samples = 4,
    together: Together = False,
    data: Data = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Hide one fact in a text, ask for it at the end, and count exact answers for every length and depth.

    Names and values are from the side of the synthetic tasks that training never shows. Answers are greedy. --json
    prints model, lengths, depths (0 to 1), accuracy (a row per depth), num_samples and seconds.
    """
    from pelagos.chat.tokenizer import Tokenizer
    from pelagos.model.transformer import Model
    from pelagos.training.evaluation import HEAT_MAP_FILE
    from pelagos.training.evaluation_plots import write_heat_map
    from pelagos.training.figures import theme
    from pelagos.training.recall import RecallConfig, measure_recall

    config = RecallConfig(
        lengths=tuple(map(int, _numbers("lengths", lengths))),
        depths=tuple(depth / 100 for depth in _numbers("depths", depths)),
        num_samples=samples,
        together=together,
        seed=seed,
    )
    if out is not None:
        with theme(HEAT_MAP_FILE):  # a missing matplotlib is found before the work
            out.mkdir(parents=True, exist_ok=True)
    folder = Path(model_place(model))
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(f"MODEL must be the folder of a checkpoint with its tokenizer.json, got {model}")
    use_threads(threads)
    tokenizer = Tokenizer.from_folder(folder)
    haystack = None if data is None else _haystack(data)
    started = time.monotonic()
    bar = _TokenBar(config)
    try:
        report = measure_recall(Model.load(folder, device), tokenizer, config, haystack=haystack, on_tokens=bar.add)
    finally:
        bar.stop()
    grid = report.grid() | {"model": str(model), "seconds": round(time.monotonic() - started, 2)}
    if out is not None:
        write_heat_map(grid, out / HEAT_MAP_FILE)
    typer.echo(json.dumps(grid) if as_json else _table(report))


def _numbers(name: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise UsageError(f"--{name} must be whole numbers with commas, got {text[:60]!r}")
    return [int(word) for word in words]


def _haystack(folder: Path) -> "TextSource":
    """The text of a prepared folder, which has a tokenizer of its own."""
    from pelagos.chat.tokenizer import Tokenizer
    from pelagos.training.data import open_shards
    from pelagos.training.task_documents import Passages

    return Passages(list(open_shards(folder, "test").values()), Tokenizer.from_folder(folder))


class _TokenBar:
    """Shows how many tokens of all texts have been answered."""

    def __init__(self, config: "RecallConfig") -> None:
        self._bar = PatientBar("recall")
        self._num_done, self._num_total = 0, config.num_tokens

    def add(self, num_tokens: int) -> None:
        self._num_done += num_tokens
        self._bar.show(self._num_done, self._num_total)

    def stop(self) -> None:
        self._bar.stop()


def _table(report: "RecallReport") -> str:
    """Shares of exact answers, a row per depth."""
    lines = ["depth" + "".join(f"{length:>9,}" for length in report.lengths)]
    for depth, row in zip(report.depths, report.grid()["accuracy"], strict=True):
        lines.append(f"{depth:>5.0%}" + "".join(f"{share:>9.0%}" for share in row))
    return "\n".join([*lines, f"exact answers by length of the text, tokens, {report.num_samples} per cell"])
