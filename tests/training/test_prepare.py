"""Preparation end to end on the sample and on small folders: reproducible, resumable, honest about what is missing."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pelagos.chat.effort import WORDS, load_effort_levels
from pelagos.chat.tokenizer import Tokenizer
from pelagos.cli.loading import default_temperature
from pelagos.cli.train_prepare import train_prepare_command
from pelagos.common.errors import ConfigError, ResourceError, UsageError
from pelagos.training import prepare as prepare_module
from pelagos.training.catalogue import SAMPLE
from pelagos.training.corpus import read_text, split_documents, text_digest
from pelagos.training.prepare import PrepareConfig, Report, prepare
from pelagos.training.shards import SPLITS, TokenSource
from pelagos.training.sources import SourceConfig
from pelagos.training.tasks.encoding import EFFORT

CONFIG = PrepareConfig(vocab_size=640, sources=SAMPLE, min_held_out_bytes=4000, plots=False)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def folder_source(folder: Path, name: str, texts: list[str]) -> SourceConfig:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return SourceConfig(name=name, kind="folder", package=str(folder / f"{name}.jsonl"), rule="text", licence="CC0")


def words(seed: int, num_words: int = 60) -> str:
    return " ".join(hashlib.sha256(b"%d %d" % (seed, n)).hexdigest()[:5] for n in range(num_words))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return prepare(CONFIG, tmp_path_factory.mktemp("prepared") / "out")


# --- what is written ---


def test_shards_hold_the_text(prepared: Report) -> None:
    tokenizer = Tokenizer.from_folder(prepared.folder)
    assert tokenizer.vocab_size == CONFIG.vocab_size
    for source in prepared.sources:
        written = sorted(document.text for document in read_text(prepared.folder / f"text/{source.name}.jsonl"))
        decoded = []
        for split in SPLITS:
            shard = TokenSource.open(prepared.folder / "tokens", source.name, split)
            shard.verify()
            texts = [tokenizer.decode(shard.document(index)) for index in range(shard.num_documents)]
            report = source.splits[split]
            assert (report.num_documents, report.num_tokens) == (shard.num_documents, shard.num_tokens)
            assert report.num_text_bytes == shard.num_text_bytes == sum(len(text.encode()) for text in texts)
            assert sum(report.length_histogram) == shard.num_documents
            decoded += texts
        assert sorted(decoded) == written


def test_held_out_text_is_enough_and_apart(prepared: Report) -> None:
    for source in prepared.sources:
        total = source.num_text_bytes
        for split in ("valid", "test"):
            wanted = max(0.01 * total, min(4000, 0.05 * total))
            assert wanted <= source.splits[split].num_text_bytes < wanted + 0.1 * total
    tokens = [
        TokenSource.open(prepared.folder / "tokens", source.name, split).document(index).tobytes()
        for source in prepared.sources
        for split in SPLITS
        for index in range(source.splits[split].num_documents)
    ]
    assert len(tokens) == len(set(tokens)) > 150


def test_it_says_how_the_model_is_to_be_asked(prepared: Report) -> None:
    """Training renders every prompt at one level of effort, so every word of a user means that one."""
    levels = load_effort_levels(prepared.folder)
    assert {levels.resolve(word) for word in WORDS if word != "none"} == {EFFORT}
    assert levels.resolve("none") == "none"
    assert default_temperature(prepared.folder) == 0.0


def test_notice_and_statistics(prepared: Report) -> None:
    notice = (prepared.folder / "NOTICE").read_text()
    statistics = json.loads((prepared.folder / "prepare.json").read_text())
    assert statistics["missing"] == {}
    assert statistics["config"]["vocab_size"] == 640
    assert statistics["num_text_bytes"] == sum(source.num_text_bytes for source in prepared.sources)
    for config, source, facts in zip(SAMPLE, prepared.sources, statistics["sources"], strict=True):
        for said in (config.name, config.package, config.version, config.licence, config.copyright):
            assert said in notice
        assert f"{source.num_text_bytes:,}" in notice
        assert facts["splits"]["train"]["num_tokens"] == source.splits["train"].num_tokens


def test_plots(prepared: Report) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is optional")
    from pelagos.training import prepare_report

    config = PrepareConfig(**{name: getattr(CONFIG, name) for name in ("vocab_size", "sources")})
    before = (prepared.folder / "prepare.json").read_bytes()
    images = []
    for _ in range(2):
        prepare_report.write(prepared.folder, config, prepared.sources, {})
        images.append({path.name: path.read_bytes() for path in (prepared.folder / "plots").iterdir()})
    (prepared.folder / "prepare.json").write_bytes(before)
    assert images[0] == images[1]
    assert set(images[0]) == {"bytes.png", "lengths.png", "tokens_per_byte.png"}
    assert all(image.startswith(b"\x89PNG") for image in images[0].values())


def test_without_matplotlib_it_says_so_before_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ResourceError, match="needs the Python package matplotlib: pip install matplotlib"):
        prepare(PrepareConfig(sources=SAMPLE), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- again, on, anew ---


def test_the_same_in_the_same_out(prepared: Report, tmp_path: Path) -> None:
    again = prepare(CONFIG, tmp_path / "out")
    assert again.resumed == ()
    mine, other = contents(tmp_path / "out"), contents(prepared.folder)
    assert mine.keys() == {name for name in other if not name.startswith("plots/")}
    assert [name for name, data in mine.items() if other[name] != data] == []


def test_a_finished_run_has_nothing_to_do(prepared: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(prepared.folder)
    monkeypatch.delattr(prepare_module, "train_tokenizer")
    monkeypatch.delattr(prepare_module, "write_text")
    monkeypatch.delattr(prepare_module, "ShardWriter")
    again = prepare(CONFIG, prepared.folder)
    assert len(again.resumed) == 2 * len(SAMPLE) + 1
    assert again.sources == prepared.sources
    assert contents(prepared.folder) == before


@pytest.mark.parametrize("after", ["text sample-story", "tokenizer", "tokens sample-words"])
def test_a_stopped_run_goes_on(prepared: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    def stop(self: Any, step: str, *rest: Any, record: Any = prepare_module.Ledger.record) -> None:
        record(self, step, *rest)
        if step == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module.Ledger, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(CONFIG, tmp_path)
    assert not (tmp_path / "prepare.json").exists()
    resumed = prepare(CONFIG, tmp_path).resumed
    assert resumed[-1] == after
    assert len(resumed) == {"text sample-story": 2, "tokenizer": 5, "tokens sample-words": 8}[after]
    assert {name: data for name, data in contents(prepared.folder).items() if "plots" not in name} == contents(tmp_path)


def test_lost_and_changed_files_are_made_again(tmp_path: Path) -> None:
    sources = tuple(folder_source(tmp_path / "in", name, [words(n) for n in range(30)]) for name in ("a", "b"))
    config = PrepareConfig(vocab_size=330, sources=sources, plots=False)
    prepare(config, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out/tokens/b.train.tokens").unlink()
    again = prepare(config, tmp_path / "out")
    assert set(again.resumed) == {"text a", "text b", "tokenizer", "tokens a"}
    assert contents(tmp_path / "out") == before
    folder_source(tmp_path / "in", "b", [words(n) for n in range(100, 130)])
    assert prepare(config, tmp_path / "out").resumed == ("text a",)


def test_other_configs_and_other_folders_are_refused(prepared: Report, tmp_path: Path) -> None:
    other = PrepareConfig(vocab_size=700, sources=SAMPLE[:1], plots=False)
    before = contents(prepared.folder)
    with pytest.raises(UsageError, match="was prepared with another config: use force to replace it"):
        prepare(other, prepared.folder)
    assert contents(prepared.folder) == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"must be new or empty, but holds thesis\.txt"):
        prepare(other, tmp_path)
    assert set(contents(tmp_path)) == {"thesis.txt"}


def test_force_replaces_what_differs_and_nothing_else(tmp_path: Path) -> None:
    sources = tuple(folder_source(tmp_path / "in", name, [words(n) for n in range(30)]) for name in ("a", "b"))
    out = tmp_path / "out"

    def config(**changes: Any) -> PrepareConfig:
        return PrepareConfig(**({"vocab_size": 330, "sources": sources, "plots": False} | changes))

    prepare(config(), out)
    (out / "text/thesis.txt").write_text("mine")
    only_a = config(sources=sources[:1])
    assert prepare(only_a, out, force=True).resumed == ("text a",)
    names = set(contents(out))
    assert "text/thesis.txt" in names
    assert not any(name.split("/")[-1].startswith("b.") for name in names)

    for changed in (config(vocab_size=340), config(vocab_size=340, seed=1), config(vocab_size=340, test_share=0.1)):
        with pytest.raises(UsageError, match="use force"):
            prepare(changed, out)
        prepare(changed, out, force=True)
        assert prepare(changed, tmp_path / f"anew{changed.seed}{changed.test_share}").resumed == ()
        anew = contents(tmp_path / f"anew{changed.seed}{changed.test_share}")
        assert contents(out) == anew | {"text/thesis.txt": b"mine"}


@pytest.mark.parametrize(
    "state",
    ["", "[]", '{"steps": {}}', '{"config": {}, "steps": {"x": {"inputs": "", "facts": 0, "files": {"../y": 1}}}}'],
)
def test_a_damaged_state_is_refused(tmp_path: Path, state: str) -> None:
    source = folder_source(tmp_path / "in", "a", [words(n) for n in range(30)])
    config = PrepareConfig(vocab_size=330, sources=(source,), plots=False)
    prepare(config, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "y").write_text("mine")
    (tmp_path / "out/state.json").write_text(state)
    with pytest.raises(UsageError, match=r"state\.json is damaged: use force"):
        prepare(config, tmp_path / "out")
    assert prepare(config, tmp_path / "out", force=True).resumed == ()
    assert contents(tmp_path / "out") == before
    assert (tmp_path / "y").exists()


def test_a_run_that_failed_at_once_can_be_repeated(tmp_path: Path) -> None:
    source = SourceConfig(name="a", kind="folder", package=str(tmp_path / "in/a.jsonl"), rule="text", licence="CC0")
    config = PrepareConfig(vocab_size=330, sources=(source,), plots=False)
    with pytest.raises(ResourceError, match="1 of 1 sources cannot be had"):
        prepare(config, tmp_path / "out")
    folder_source(tmp_path / "in", "a", [words(n) for n in range(30)])
    assert prepare(config, tmp_path / "out").missing == {}


# --- sources that are missing, empty or alike ---


def test_missing_sources_are_all_named(tmp_path: Path) -> None:
    there = folder_source(tmp_path / "in", "there", [words(n) for n in range(30)])
    gone = [
        SourceConfig(name=name, kind="folder", package=str(tmp_path / name), rule="text", licence="CC0")
        for name in ("gone", "lost")
    ]
    config = PrepareConfig(vocab_size=330, sources=(gone[0], there, gone[1]), plots=False)
    with pytest.raises(ResourceError, match=r"2 of 3 sources cannot be had:\n  - gone: .*is not there\n  - lost: "):
        prepare(config, tmp_path / "out")
    report = prepare(config, tmp_path / "out", allow_missing=True)
    assert [source.name for source in report.sources] == ["there"]
    assert report.missing.keys() == {"gone", "lost"}
    assert json.loads((tmp_path / "out/prepare.json").read_text())["missing"] == report.missing
    with pytest.raises(ResourceError, match="no source is left: "):
        prepare(PrepareConfig(sources=tuple(gone), plots=False), tmp_path / "none", allow_missing=True)


def test_a_source_that_is_gone_leaves_nothing_behind(tmp_path: Path) -> None:
    sources = tuple(folder_source(tmp_path / "in", name, [words(n) for n in range(30)]) for name in ("a", "b"))
    config = PrepareConfig(vocab_size=330, sources=sources, plots=False)
    prepare(config, tmp_path / "out")
    (tmp_path / "in/a.jsonl").unlink()
    prepare(config, tmp_path / "out", allow_missing=True)
    assert not [name for name in contents(tmp_path / "out") if name.split("/")[-1].startswith("a.")]


def test_duplicates_and_misfits_are_left_out(tmp_path: Path) -> None:
    a = folder_source(tmp_path / "in", "a", [words(1), words(2), words(1) + "\n\n", "short", words(3, 5000)])
    b = folder_source(tmp_path / "in", "b", [words(2), words(4)])
    config = PrepareConfig(
        vocab_size=330, sources=(a, b), plots=False, valid_share=0.0, test_share=0.0, max_document_bytes=20_000
    )
    first, second = prepare(config, tmp_path / "out").sources
    assert (first.num_documents, first.num_duplicates, first.num_too_short, first.num_too_long) == (2, 1, 1, 1)
    assert (second.num_documents, second.num_duplicates) == (1, 1)
    assert first.splits["valid"].num_documents == first.splits["test"].num_tokens == 0


def test_held_out_text_does_not_reach_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_source(tmp_path / "in", "a", [words(n) for n in range(100)])
    seen: list[str] = []
    real = prepare_module.train_tokenizer

    def spy(texts: Any, vocab_size: int) -> str:
        seen.extend(texts)
        return real(seen, vocab_size)

    monkeypatch.setattr(prepare_module, "train_tokenizer", spy)
    prepare(PrepareConfig(vocab_size=330, sources=(source,), plots=False, test_share=0.2), tmp_path / "out")
    tokenizer = Tokenizer.from_folder(tmp_path / "out")
    for split in ("valid", "test"):
        shard = TokenSource.open(tmp_path / "out/tokens", "a", split)
        assert shard.num_documents > 2
        assert not {tokenizer.decode(shard.document(index)) for index in range(shard.num_documents)} & set(seen)
    assert len(seen) == TokenSource.open(tmp_path / "out/tokens", "a", "train").num_documents


def test_limits(tmp_path: Path) -> None:
    source = folder_source(tmp_path / "in", "a", [words(n) for n in range(30)])
    with pytest.raises(UsageError, match=r"source a has more text than max_source_bytes, 1,000"):
        prepare(PrepareConfig(sources=(source,), plots=False, max_source_bytes=1000), tmp_path / "out")
    half = folder_source(tmp_path / "in", "half", [words(1) + "\ud800"])
    with pytest.raises(UsageError, match=r"half, half\.jsonl:1 holds half a surrogate pair"):
        prepare(PrepareConfig(sources=(half,), plots=False), tmp_path / "out2")


def test_bad_configs() -> None:
    for change, message in (
        ({"vocab_size": 319}, "vocab_size must be a whole number from 320 to 1048576"),
        ({"sources": ()}, "sources must be a tuple of at least one"),
        ({"sources": SAMPLE + SAMPLE[:1]}, "sample-manual stands twice"),
        ({"test_share": 0.5}, r"test_share must be a number from 0 to 0\.4"),
    ):
        with pytest.raises(ConfigError, match=message):
            PrepareConfig(**change)


# --- splits ---

RULE = {"valid_share": 0.1, "test_share": 0.1, "min_held_out_bytes": 0}


@given(st.sets(st.text(max_size=3), max_size=80), st.randoms(use_true_random=False))
def test_a_split_belongs_to_the_text_not_to_its_place(texts: set[str], random: Any) -> None:
    def splits(order: list[str]) -> dict[str, str]:
        digests = [text_digest(text) for text in order]
        return dict(zip(order, split_documents(digests, [10] * len(order), seed=3, **RULE), strict=True))

    order = sorted(texts)
    expected = splits(order)
    random.shuffle(order)
    assert splits(order) == expected


def test_splits_have_their_shares() -> None:
    digests = [text_digest(str(n)) for n in range(1000)]
    first = split_documents(digests, [10] * 1000, seed=0, **RULE)
    assert (first.count("train"), first.count("valid"), first.count("test")) == (800, 100, 100)
    assert split_documents(digests, [10] * 1000, seed=1, **RULE) != first
    most = split_documents(digests, [10] * 1000, seed=0, **(RULE | {"valid_share": 0.01, "min_held_out_bytes": 300}))
    assert (most.count("valid"), most.count("test")) == (30, 100)
    capped = split_documents(digests, [10] * 1000, seed=0, valid_share=0.01, test_share=0.0, min_held_out_bytes=10**9)
    assert (capped.count("valid"), capped.count("test")) == (50, 0)
    for seed in range(20):
        giant = split_documents(digests[:20], [10] * 19 + [100], seed=seed, **RULE)
        assert giant[-1] == "train"
        assert giant.count("test") == giant.count("valid") == 3


# --- the command ---


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(train_prepare_command)
    return CliRunner().invoke(app, arguments)


def test_the_command(tmp_path: Path) -> None:
    folder_source(tmp_path / "in", "b", [words(n) for n in range(30)])
    (tmp_path / "in/c.txt").write_text(words(77))
    out = tmp_path / "out"
    options = ["--folder", f"mine={tmp_path / 'in'}", "--vocab-size", "330", "--no-plots", "--licence", "CC0"]
    result = run(str(out), *options, "--json")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert report["sources"][0]["name"] == "mine"
    assert report["sources"][0]["licence"] == "CC0"
    assert sum(split["num_documents"] for split in report["sources"][0]["splits"].values()) == 31
    result = run(str(out), *options)
    assert result.stdout.splitlines()[0].split() == ["source", "documents", "MB", "M", "tokens", "held", "out", "MB"]
    assert result.stdout.splitlines()[1].startswith("mine                            31")


def test_the_command_names_what_it_cannot_use(tmp_path: Path) -> None:
    for arguments, message in (
        (["--sample", "--source", "wordnet"], "give either --sample or --source and --folder"),
        (["--folder", "x"], "--folder must be NAME=PATH, got 'x'"),
        (["--source", "nope"], "there is no source 'nope'"),
        (["--sample", "--vocab-size", "1"], "vocab_size must be a whole number from 320"),
    ):
        result = run(str(tmp_path / "out"), *arguments, "--no-plots")
        assert isinstance(result.exception, UsageError | ConfigError)
        assert message in str(result.exception)
