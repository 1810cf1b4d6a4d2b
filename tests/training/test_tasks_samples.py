"""What every task promises: the same dice give the same sample, test material stays out of training, JSON both ways."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_cases import haystack, make, official, samples, tiny

from pelagos.common.errors import ConfigError, UsageError
from pelagos.training.tasks import TASKS, Knobs, Sample, TaskMix, TaskShare, is_held_out, kv, needle
from pelagos.training.tasks.calc_tool import CalcToolKnobs
from pelagos.training.tasks.item import Draw
from pelagos.training.tasks.knobs import draw_depth, draw_size
from pelagos.training.tasks.kv import KvKnobs
from pelagos.training.tasks.needle import NeedleKnobs
from pelagos.training.tasks.talk import BEYOND
from pelagos.training.tasks.words import CLOSINGS, OPENINGS, STATEMENT_OPENINGS, word_pool

NUMBERS = re.compile(r"\d{4,}")


def all_text(sample: Sample) -> str:
    turns = [f"{turn.text}\n{turn.reasoning}\n{turn.calls}" for turn in sample.turns]
    return "\n".join([*(segment.text for segment in sample.segments), *turns, sample.answer])


def question(sample: Sample) -> str:
    """The last question of a conversation, without what stands in front of it."""
    return [turn for turn in sample.turns if turn.role == "user"][-1].segments[-1].text.strip()


def test_all_tasks_of_the_specification_are_there() -> None:
    wanted = "kv needle last-wins chain dict code-recall list-index copy reverse calc-tool store-tool quick count"
    assert {*wanted.split(), "reading", "unknown", "greeting", "talk"} == set(TASKS)
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
def test_same_dice_same_sample(name: str) -> None:
    made = [make(name, seed, real=True) for seed in range(6)]
    assert made == [make(name, seed, real=True) for seed in range(6)]
    assert len({json.dumps(sample.to_json()) for sample in made}) > 2


def test_samples_do_not_depend_on_the_process() -> None:
    code = (
        "import random, sys\nsys.path.insert(0, 'tests/training')\nfrom task_cases import make\n"
        "from pelagos.training.tasks import TASKS\nprint([make(name, 3).to_json() for name in TASKS])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] == f"{[make(name, 3).to_json() for name in TASKS]}\n"


@pytest.mark.parametrize("name", TASKS)
def test_json_both_ways(name: str) -> None:
    for sample in samples(name, 8, thinking_share=0.5):
        assert Sample.from_json(json.loads(json.dumps(sample.to_json()))) == sample


@pytest.mark.parametrize(
    "damage", [{"segments": 3}, {"turns": [{}]}, {"tools": None}, {"colour": "blue"}, {"segments": [{"words": ""}]}]
)
def test_broken_json_is_refused(damage: dict[str, Any]) -> None:
    data = make("kv", 1, chat_share=0).to_json()
    with pytest.raises(UsageError, match="not a sample of a synthetic task"):
        Sample.from_json({**data, **damage})
    del data["answer"]
    with pytest.raises(UsageError, match="answer"):
        Sample.from_json(data)


def test_one_key_in_eight_is_held_out() -> None:
    share = sum(is_held_out(f"key {i}") for i in range(8000)) / 8000
    assert 0.11 < share < 0.14
    assert is_held_out("Amber ") == is_held_out("amber")


@pytest.mark.parametrize("vocabulary", [official, tiny])
def test_word_pools(vocabulary: Any) -> None:
    training, held_out = (word_pool(vocabulary(), side) for side in (False, True))
    assert len(training) > 700
    assert len(held_out) > 80
    assert not {*training} & {*held_out}
    assert not any(map(is_held_out, training))
    assert all(map(is_held_out, held_out))
    if vocabulary is official:
        encoded = {word: official().encode(f" {word}") for word in training + held_out}
        assert all(len(encoded[word]) == 1 for word in held_out)
        assert sum(len(encoded[word]) == 1 for word in training) > 700
        # Words of the test side begin some of training, so that no entry of the vocabulary is never an answer.
        begun = {encoded[word][0] for word in training}
        assert all(encoded[word][0] in begun for word in held_out)


@pytest.mark.parametrize("name", TASKS)
def test_no_held_out_key_in_training(name: str) -> None:
    """Keys of both sides of the split, and every longer number that occurs anywhere in a training sample."""
    training = list(samples(name, 200))
    held_out = list(samples(name, 60, held_out=True))
    for sample in training:
        assert not sample.held_out
        assert not any(map(is_held_out, NUMBERS.findall(all_text(sample))))
    sides = [Counter(key for sample in side for key in sample.metadata["keys"]) for side in (training, held_out)]
    assert not sides[0].keys() & sides[1].keys()
    single = [{key for key in side if " " not in key and "_" not in key} for side in sides]
    assert not any(is_held_out(key) for key in single[0] if not key.isdigit() or len(key) > 3)
    assert all(is_held_out(key) for key in single[1])


@pytest.mark.parametrize("name", ["kv", "list-index", "copy", "reverse", "code-recall", "chain", "last-wins"])
def test_no_held_out_word_among_the_facts_of_training(name: str) -> None:
    wording = {word for phrases in TASKS[name].phrases for text in phrases.training for word in text.split()}
    wording |= {"Row", "def", "return", *re.findall("[A-Za-z]+", " ".join(STATEMENT_OPENINGS))}
    wording |= {word[0].lower() + word[1:] for word in wording}
    facts = [sample.segments[0].text for sample in samples(name, 300, chat_share=0)]
    words = {word for text in facts for word in re.findall(r"[A-Za-z]+", text)} - wording
    assert len(words) > 100
    assert not any(map(is_held_out, words))


# What the fields of phrases may be: narrow, so that a phrase that is little more than its field matches no other.
FIELDS = {
    "what": r"(?:[\d+*(), -]|plus|minus|times|and)+",
    "name": r"[A-Z][a-z]+|\w+_\w+",
    "values": r"\w+ = \d+(, \w+ = \d+)*",
    "place": r"[A-Z][a-z]+",
    "value": r"\d+|[a-z ]+|[A-Z][a-z]+",
    "n": r"\d+",
}


def pattern(phrase: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", phrase)
    fields = (f"(?:{FIELDS.get(field, '[a-z ]+')})" for field in parts[1::2])
    return re.compile("".join(re.escape(text) + next(fields, "") for text in parts[::2]))


def bare(asked: str) -> str:
    """A question without what training may put before and behind it."""
    for opening in OPENINGS:
        if asked.startswith(f"{opening} "):
            asked = asked.removeprefix(f"{opening} ")
            break
    for closing in CLOSINGS:
        asked = asked.removesuffix(f" {closing}")
    return asked


@pytest.mark.usefixtures("plain_wording")
@pytest.mark.parametrize("name", sorted({*TASKS} - {"talk"}))  # what it tells stands in front of its questions
def test_wording_is_split_too(name: str) -> None:
    phrases = TASKS[name].phrases
    patterns = {
        side: [pattern(text) for group in phrases for text in (group.held_out if side else group.training)]
        for side in (False, True)
    }
    for side in (False, True):
        for sample in samples(name, 60, held_out=side, chat_share=1):
            asked = question(sample) if side else bare(question(sample))
            forms = {asked, asked[0].upper() + asked[1:]}  # behind an opening that goes on its first letter is small
            assert any(pattern.fullmatch(form) for pattern in patterns[side] for form in forms), asked
            assert not any(pattern.fullmatch(asked) for pattern in patterns[not side]), asked


def test_a_word_of_a_question_or_fact_may_be_another_in_training_alone() -> None:
    """One at most, so that it can be told still what is meant."""
    phrases = kv.ASK.training
    pool = word_pool(official(), False)
    draws = [Draw(rng=random.Random(i), held_out=False, depth=0.5, pool=pool) for i in range(300)]
    changes = []
    for draw in draws:
        asked = bare(draw.question(kv.ASK)).split(" ")
        asked[0] = asked[0][:1].upper() + asked[0][1:]
        same_length = [text.split(" ") for text in phrases if len(text.split(" ")) == len(asked)]
        changes.append(min(sum(a != b for a, b in zip(asked, text, strict=True)) for text in same_length))
    assert set(changes) == {0, 1}
    assert 40 < sum(changes) < 140
    held_out = [Draw(rng=random.Random(i), held_out=True, depth=0.5, pool=()) for i in range(60)]
    assert {draw.statement(needle.TELL) for draw in held_out} == {*needle.TELL.held_out}


def test_questions_stand_anywhere_in_training_alone() -> None:
    training = [question(sample) for sample in samples("kv", 60, chat_share=1)]
    assert 0.2 < sum(asked != bare(asked) for asked in training) / len(training) < 0.8
    held_out = [question(sample) for sample in samples("kv", 60, held_out=True, chat_share=1)]
    assert all(asked == bare(asked) for asked in held_out)


@pytest.mark.parametrize("name", TASKS)
def test_at_least_eight_ways_to_ask_and_two_of_them_held_out(name: str) -> None:
    asks = [group for group in TASKS[name].phrases if len(group.training) >= 8]
    assert asks
    for group in TASKS[name].phrases:
        texts = group.training + group.held_out
        assert len(set(texts)) == len(texts) >= 8
        assert len(group.held_out) == 2
        fields = [
            {frozenset(re.findall(r"\{\w+\}", text)) for text in side} for side in (group.training, group.held_out)
        ]
        assert fields[1] <= fields[0], "questions of the test side ask for what others do"
        assert len(fields[0] | fields[1]) == 1 or group is BEYOND, "the same fields in each"


@given(st.integers(0, 2**32), st.integers(0, 500), st.integers(0, 500))
def test_sizes_are_in_their_range(seed: int, low: int, width: int) -> None:
    assert low <= draw_size(random.Random(seed), (low, low + width)) <= low + width


def test_sizes_and_depths_are_uniform_in_log_scale() -> None:
    rng = random.Random(1)
    sizes = Counter(draw_size(rng, (1, 1023)).bit_length() for _ in range(20000))
    assert set(sizes) == set(range(1, 11))
    assert all(1700 < number < 2300 for number in sizes.values())
    distances = [1 - draw_depth(rng, (0.0, 1.0), 16384) for _ in range(20000)]
    assert min(distances) >= 16 / 16384
    assert max(distances) <= 1
    by_octave = Counter(int(16384 * distance).bit_length() for distance in distances)
    assert all(1700 < by_octave[octave] < 2300 for octave in range(5, 15))


@settings(max_examples=50)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(32, 1 << 20), st.integers(0, 100))
def test_depths_are_in_their_range(first: float, second: float, num_tokens: int, seed: int) -> None:
    low, high = sorted((first, second))
    assert low - 1e-9 <= draw_depth(random.Random(seed), (low, high), num_tokens) <= high + 1e-9


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"target_tokens": (10, 100)}, "target_tokens must be a whole number from 32 to 1048576, got 10"),
        ({"target_tokens": 512}, r"target_tokens must be a range \(smallest, largest\), got 512"),
        ({"num_pairs": (9, 4)}, r"num_pairs must be a range \(smallest, largest\), got \(9, 4\)"),
        ({"num_pairs": (1.5, 4)}, "num_pairs must be a whole number from 1 to 4096, got 1.5"),
        ({"num_pairs": None}, "num_pairs must be a range"),
        ({"num_pairs": (4, 8, 9)}, "num_pairs must be a range"),
        ({"depth": (0.0, 1.5)}, "depth must be a number from 0 to 1, got 1.5"),
        ({"chat_share": -1}, "chat_share must be a number from 0 to 1"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KvKnobs(**knobs)


def test_ranges_may_come_as_lists() -> None:
    assert KvKnobs(num_pairs=[4, 8], depth=[0.5, 0.5]) == KvKnobs(num_pairs=(4, 8), depth=(0.5, 0.5))


def test_every_knob_has_help() -> None:
    for task in TASKS.values():
        fields = task.knobs.__dataclass_fields__.values()
        assert all(field.metadata["help"] and field.kw_only for field in fields)


def test_knobs_set_the_sizes() -> None:
    for sample in samples("kv", 40, num_pairs=(3, 6)):
        assert 3 <= sample.metadata["num_pairs"] <= 6
    for sample in samples("calc-tool", 40, num_calls=(3, 3)):
        assert [len(turn.calls) for turn in sample.turns if turn.calls] == [3]
    for sample in samples("calc-tool", 40, num_operations=(4, 4), num_questions=(2, 2)):
        assert all(len(re.findall(r" ([-+*]|plus|minus|times) ", asked)) == 4 for asked in sample.metadata["keys"])
        assert len([turn for turn in sample.turns if turn.calls]) == 2
    for sample in samples("kv", 40, spelled_share=1, chat_share=0):
        keys = [re.fullmatch(r"- (\w+): (\w+)", line) for line in sample.segments[0].text.splitlines()]
        assert all(part[0].isupper() or part.isdigit() for key in keys if key for part in key.groups())
        assert None not in keys
    for name in ("list-index", "reading", "last-wins", "chain"):
        numbers = {sum(segment.answer for segment in sample.segments) for sample in samples(name, 60, chat_share=0)}
        assert len(numbers) > 1
    for sample in samples("chain", 40, num_hops=(1, 2)):
        assert 1 <= sample.metadata["hops"] <= 2
    assert all(sample.thinking for sample in samples("needle", 20, chat_share=1, thinking_share=1))
    kinds = Counter(sample.kind for sample in samples("needle", 200, chat_share=0.25))
    assert 25 < kinds["chat"] < 75


def test_a_glossary_of_real_glosses() -> None:
    glosses = [f"{word} (noun): {word} is something that one knows" for word in word_pool(official(), False)[:60]]
    glosses += [f"{word} (verb): to {word} is what one does" for word in word_pool(official(), True)[:60]]
    for held_out in (False, True):
        for seed in range(10):
            sample = TASKS["dict"].make(
                random.Random(seed), tokenizer=official(), held_out=held_out, glosses=lambda rng: rng.choice(glosses)
            )
            entries = [line for line in all_text(sample).splitlines() if line in glosses]
            assert len(entries) == sample.metadata["num_entries"] > 3
            assert all(is_held_out(line.split()[0]) == held_out for line in entries)
            assert sample.metadata["full"].startswith(sample.answer)
    with pytest.raises(UsageError, match=r"glosses must be lines 'word \(pos\): gloss'"):
        TASKS["dict"].make(random.Random(1), tokenizer=official(), glosses=lambda rng: "no gloss")


def test_a_mix_draws_by_share() -> None:
    easy, hard = KvKnobs(num_pairs=(2, 2)), KvKnobs(num_pairs=(9, 9))
    mix = TaskMix(
        shares=(
            TaskShare(task="kv", share=3.0, knobs=easy),
            TaskShare(task="kv", share=1.0, knobs=hard),
            TaskShare(task="needle", share=4.0, knobs=NeedleKnobs()),
            TaskShare(task="calc-tool", share=0.0, knobs=CalcToolKnobs()),
        )
    )
    rng = random.Random(7)
    made = [mix.make(rng, tokenizer=official(), haystack=haystack) for _ in range(400)]
    found = Counter((sample.task, sample.metadata.get("num_pairs")) for sample in made)
    assert 110 < found["kv", 2] < 190
    assert 25 < found["kv", 9] < 80
    assert 160 < found["needle", None] < 240
    assert sum(found.values()) == found["kv", 2] + found["kv", 9] + found["needle", None]


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ({"task": "poetry", "knobs": KvKnobs()}, "task must be one of kv, needle, .*, got 'poetry'"),
        ({"task": "kv", "knobs": NeedleKnobs()}, "knobs of the task kv must be KvKnobs, got NeedleKnobs"),
        ({"task": "kv", "knobs": Knobs()}, "must be KvKnobs"),
        ({"task": "kv", "knobs": KvKnobs(), "share": -1.0}, "share must be a number of at least 0"),
    ],
)
def test_bad_shares_are_refused(share: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskShare(**share)


def test_a_mix_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="sum above 0"):
        TaskMix(shares=(TaskShare(task="kv", share=0.0, knobs=KvKnobs()),))
