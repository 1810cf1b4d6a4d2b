"""Length and depth of samples with filler, in tokens; the recall grid; and that long samples take linear time."""

import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_cases import VOCABULARIES, haystack, make, official

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import ConfigError, UsageError
from pelagos.training.tasks import TASKS, Sample, encode, evaluation_grid, grade, is_held_out, last_prompt, shared_texts
from pelagos.training.tasks.filler import Filler, first_words
from pelagos.training.tasks.needle import NeedleKnobs

FILLED = [name for name, task in TASKS.items() if task.fills]


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", FILLED)
def test_length_is_a_few_percent_below_the_target_at_most(name: str, real: bool) -> None:
    for seed, target in enumerate((1000, 1025, 3000)):
        sample = make(name, seed, real=real, target_tokens=(target, target))
        assert 0.97 * target <= len(encode(sample, official())[0]) <= target
        assert sample.metadata["target_tokens"] == target


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_length_with_other_vocabularies_and_short_targets(vocabulary: str) -> None:
    tokenizer = VOCABULARIES[vocabulary]()
    for seed in range(20):
        knobs = NeedleKnobs(target_tokens=(300, 400), num_needles=(1, 2))
        sample = TASKS["needle"].make(
            random.Random(seed), knobs, tokenizer=tokenizer, haystack=haystack if seed % 2 else None
        )
        length = len(encode(sample, tokenizer)[0])
        assert 0.93 * sample.metadata["target_tokens"] <= length <= sample.metadata["target_tokens"]


@pytest.mark.parametrize("name", ["greeting", "quick"])
def test_tasks_without_a_text_to_search_stay_short(name: str) -> None:
    assert len(encode(make(name, 1, target_tokens=(500, 500)), official())[0]) < 100


def test_sizes_shrink_until_the_sample_fits() -> None:
    for seed in range(40):  # one draw in six would fit without shrinking
        sample = make("kv", seed, num_pairs=(4, 1024), target_tokens=(128, 128))
        assert len(encode(sample, official())[0]) <= 128
        assert sample.metadata["num_pairs"] >= 4


def test_a_target_that_is_too_short_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"target_tokens must be at least \d+ for this sample of the task calc-tool, got 64"
    ):
        make("calc-tool", 1, target_tokens=(64, 64))


def depth_in_tokens(sample: Sample, tokenizer: Tokenizer) -> tuple[float, int]:
    """Share of the filler that stands before the fact, and tokens of filler."""
    fact = sample.metadata["fact"] + "\n"
    text = "".join(segment.text for segment in sample.segments or sample.turns[0].segments[:-1])
    assert text.count(fact) == 1
    before, behind = text.split(fact)
    if sample.segments:
        behind = behind.split("Question: ")[0]
    sizes = [len(tokenizer.encode(part)) for part in (before, behind)]
    return sizes[0] / sum(sizes), sum(sizes)


def test_the_fact_that_is_asked_for_last_is_at_the_depth_among_several() -> None:
    for seed in range(12):
        sample = make("needle", seed, real=True, num_needles=(4, 4), target_tokens=(2000, 2000), chat_share=0)
        facts = [
            place for place, segment in enumerate(sample.segments) if segment.text == sample.metadata["fact"] + "\n"
        ]
        sizes = [0 if s.answer or s.weight < 1 else len(official().encode(s.text)) for s in sample.segments]
        assert len(facts) == 1
        assert abs(sum(sizes[: facts[0]]) / sum(sizes) - sample.metadata["depth"]) <= 12 / sum(sizes)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("kind", ["text", "chat"])
def test_grid(kind: str, real: bool) -> None:
    lengths, depths = [2048, 512], [0.0, 0.3, 0.5, 1.0]
    options = {"tokenizer": official(), "haystack": haystack if real else None, "kind": kind}
    cells = list(evaluation_grid(lengths, depths, 3, 11, **options))
    assert [(cell.length, cell.depth, cell.index) for cell in cells] == [
        (length, depth, index) for length in (512, 2048) for depth in depths for index in range(3)
    ]
    for cell in cells:
        sample = cell.sample
        assert sample.held_out
        assert sample.kind == kind
        assert all(is_held_out(key) for key in sample.metadata["keys"][:1])
        assert 0.97 * cell.length <= len(encode(sample, official())[0]) <= cell.length
        depth, num_filler = depth_in_tokens(sample, official())
        assert abs(depth - cell.depth) <= 12 / num_filler
        assert grade(sample, sample.answer).correct
        prompt = last_prompt(sample, official())
        assert sample.metadata["keys"][1] in prompt.text
    alone = list(evaluation_grid([2048], [0.5], 3, 11, **options))
    assert alone == [cell for cell in cells if (cell.length, cell.depth) == (2048, 0.5)]
    assert len({cell.sample.answer for cell in cells}) > 16
    assert alone != list(evaluation_grid([2048], [0.5], 3, 12, **options))


def test_texts_that_all_depths_share() -> None:
    depths = [0.0, 0.25, 0.5, 0.75, 1.0]
    texts = list(shared_texts([2048, 700], depths, 2, 3, tokenizer=official(), haystack=haystack))
    assert [{(cell.length, cell.index) for cell in cells} for cells in texts] == [
        {(length, index)} for length in (700, 2048) for index in range(2)
    ]
    for cells in texts:
        [context] = {"".join(segment.text for segment in cell.sample.turns[0].segments[:-1]) for cell in cells}
        assert [cell.depth for cell in cells] == depths
        places = []
        for cell in cells:
            question, answer = cell.sample.turns
            [(name, value)] = re.findall(r"The [a-z ]+ of ([A-Z][a-z]+) is (.*)", answer.text)
            assert name in question.segments[-1].text
            assert grade(cell.sample, answer.text).correct
            assert cell.length - 150 <= len(encode(cell.sample, official())[0]) <= cell.length
            [line] = [line for line in context.splitlines() if name in line]
            assert value in line
            places.append(context.index(line) / len(context))
        assert places == sorted(places)
        assert places[0] == 0
        assert 0.3 < places[2] < 0.7
        assert places[4] > 0.85


def test_the_grid_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="target_tokens must be a whole number"):
        next(evaluation_grid([1 << 21], [0.5], 1, 0, tokenizer=official()))
    with pytest.raises(ConfigError, match="depth must be a number from 0 to 1"):
        next(evaluation_grid([512], [1.5], 1, 0, tokenizer=official()))


def test_work_grows_with_the_length_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: characters that are encoded, and pieces of the haystack that are asked for."""
    encode_text: Callable[[Tokenizer, str], list[int]] = Tokenizer.encode
    counts = {"characters": 0, "pieces": 0}

    def counting(self: Tokenizer, text: str) -> list[int]:
        counts["characters"] += len(text)
        return encode_text(self, text)

    def pieces(rng: random.Random) -> str:
        counts["pieces"] += 1
        return "A sentence of some real text, somewhere. " * 5

    monkeypatch.setattr(Tokenizer, "encode", counting)
    work = []
    for length in (8192, 32768):
        knobs = NeedleKnobs(target_tokens=(length, length), chat_share=0.0)
        TASKS["needle"].make(random.Random(3), knobs, tokenizer=official(), haystack=pieces)
        work.append(dict(counts))
        counts.update(characters=0, pieces=0)
    assert work[1]["characters"] < 4.3 * work[0]["characters"]
    assert work[1]["pieces"] < 4.3 * work[0]["pieces"]
    assert work[1]["characters"] < 3 * 32768 * 6


@pytest.mark.slow
def test_a_million_tokens() -> None:
    [cell] = evaluation_grid([1 << 20], [0.25], 1, 5, tokenizer=official(), haystack=haystack)
    assert 0.99 * (1 << 20) <= len(encode(cell.sample, official())[0]) <= 1 << 20
    depth, num_filler = depth_in_tokens(cell.sample, official())
    assert abs(depth - 0.25) <= 0.01
    assert num_filler > 1_000_000


def test_a_haystack_without_text_is_refused() -> None:
    with pytest.raises(UsageError, match="empty pieces of text"):
        TASKS["needle"].make(
            random.Random(1), NeedleKnobs(target_tokens=(512, 512)), tokenizer=official(), haystack=lambda rng: " \n"
        )


@settings(max_examples=60)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=400), st.integers(0, 60))
def test_first_words(text: str, num_tokens: int) -> None:
    text = text.strip()
    kept, length = first_words(text, num_tokens, official())
    assert text.startswith(kept)
    assert length <= num_tokens
    if kept == text:
        return
    assert len(official().encode(text + "\n")) > num_tokens
    if kept and any(c in " \n" for c in kept.strip()):
        assert kept[-1:].isspace() or text[len(kept)].isspace(), "cut between words"


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_filler_goes_on_where_it_stopped(vocabulary: str) -> None:
    words = " ".join(f"word{i}" for i in range(2000))
    filler = Filler(iter([words, "none left"]).__next__, VOCABULARIES[vocabulary]())
    parts = [filler.take(num_tokens) for num_tokens in (50, 3, 200, 8, 100)]
    assert "".join(text for text, _ in parts).split() == words.split()[: sum(len(text.split()) for text, _ in parts)]
    for (_, taken), wanted in zip(parts, (50, 3, 200, 8, 100), strict=True):
        assert taken <= wanted
        assert taken >= wanted - 8
