"""The answers that samples hold are the right ones: found again from the text alone, by other means, amid filler."""

import re
from collections.abc import Callable

import pytest
from task_cases import make, samples

from pelagos.training.tasks import Sample
from pelagos.training.tasks.chain import TELL as LINK
from pelagos.training.tasks.grading import expected_calls
from pelagos.training.tasks.item import UNKNOWN
from pelagos.training.tasks.last_wins import TELL as UPDATE
from pelagos.training.tasks.needle import ASK as NEEDLE_ASK
from pelagos.training.tasks.quick import TOPICS
from pelagos.training.tasks.words import CLOSINGS, OPENINGS, Phrases


def text_and_question(sample: Sample) -> tuple[str, str]:
    """What stands in front of the first question, and the last question."""
    asked = [turn for turn in sample.turns if turn.role == "user"]
    return "".join(s.text for s in asked[0].segments[:-1]), asked[-1].segments[-1].text.strip()


def told(phrases: Phrases, text: str) -> list[tuple[str, str]]:
    """Keys and values of all lines that are one of the phrases, in order."""
    patterns = [
        re.compile(re.escape(phrase).replace(r"\{key\}", "(?P<key>[a-z]+)").replace(r"\{value\}", "(?P<value>[a-z ]+)"))
        for phrase in phrases.training
    ]
    matches = [pattern.fullmatch(line) for line in text.splitlines() for pattern in patterns]
    return [(match["key"], match["value"]) for match in matches if match]


def asked_for(keys: list[str], question: str) -> str:
    """The longest key in the question."""
    return max((key for key in keys if re.search(rf"\b{re.escape(key)}\b", question)), key=len)


def solve_kv(text: str, question: str) -> str:
    pairs = dict(re.findall(r"^- (.*): (.*)$", text, re.MULTILINE))
    key = asked_for(list(pairs), question)
    return f"- {key}: {pairs[key]}"


def solve_needle(text: str, question: str) -> str:
    wording = {word for text in (*NEEDLE_ASK.training, *OPENINGS, *CLOSINGS) for word in re.findall(r"[A-Z]\w+", text)}
    [name] = {*re.findall(r"[A-Z][a-z]+", question)} - wording
    [line] = [line for line in text.splitlines() if re.search(rf"\b{name}\b", line)]
    return line


def solve_last_wins(text: str, question: str) -> str:
    updates = told(UPDATE, text)
    key = asked_for([key for key, _ in updates], question)
    return f"At the end {key} is {dict(updates)[key]}"


def solve_chain(text: str, question: str) -> str:
    links = dict(told(LINK, text))
    key = asked = asked_for(list(links), question)
    while key in links:
        key = links[key]
    return f"So in the end {asked} is {key}"


def solve_dict(text: str, question: str) -> str:
    entries = dict(re.findall(r"^([a-z]+) \(\w+\): (.*)$", text, re.MULTILINE))
    [number] = re.findall(r"\d+", question)
    return " ".join(entries[asked_for(list(entries), question)].split()[: int(number)])


def solve_code_recall(text: str, question: str) -> str:
    functions = dict(re.findall(r"^def (\w+)\((.*)\):$", text, re.MULTILINE))
    name = asked_for(list(functions), question)
    values = dict(re.findall(r"(\w+) = (\d+)", question))
    return f"{name}({', '.join(values[parameter] for parameter in functions[name].split(', '))})"


def solve_list_index(text: str, question: str) -> str:
    [number] = re.findall(r"\d+", question)
    [line] = re.findall(rf"^{number}\. .*$", text, re.MULTILINE)
    return str(line)


def solve_copy(text: str, question: str) -> str:
    [row] = re.findall(r"^Row: .*$", text, re.MULTILINE)
    return str(row)


def solve_reverse(text: str, question: str) -> str:
    return " ".join(["Backwards:", *solve_copy(text, question).split()[:0:-1]])


def solve_count(text: str, question: str) -> str:
    [words] = re.findall(r"^Words: (.*)$", text, re.MULTILINE)
    return str(words.split().count(asked_for(words.split(), question)))


SOLVERS: dict[str, Callable[[str, str], str]] = {
    "kv": solve_kv,
    "last-wins": solve_last_wins,
    "chain": solve_chain,
    "dict": solve_dict,
    "code-recall": solve_code_recall,
    "list-index": solve_list_index,
    "copy": solve_copy,
    "reverse": solve_reverse,
    "count": solve_count,
}


@pytest.mark.usefixtures("plain_wording")
@pytest.mark.parametrize("name", SOLVERS)
def test_the_answer_follows_from_the_text(name: str) -> None:
    for sample in samples(name, 30, chat_share=1, target_tokens=(1500, 2500)):
        assert SOLVERS[name](*text_and_question(sample)) == sample.answer


@pytest.mark.usefixtures("plain_wording")
def test_the_fact_of_a_needle_is_the_only_one_about_its_name() -> None:
    for sample in samples("needle", 60, chat_share=1, target_tokens=(600, 900)):
        line = solve_needle(*text_and_question(sample))
        assert line == sample.metadata["fact"]
        name, value = sample.metadata["keys"]
        assert re.fullmatch(rf"The [a-z ]+ of {name} is {value}", sample.answer)
        assert value in line
    cued = [make("needle", seed, chat_share=0, cue_share=1).segments[-2].text for seed in range(20)]
    assert all(re.fullmatch(r"The [a-z ]+ of [A-Z][a-z]+ is", cue) for cue in cued)


def test_reading_answers_stand_in_the_paragraph_of_the_person() -> None:
    for sample in samples("reading", 60, chat_share=1):
        text, question = text_and_question(sample)
        name = sample.metadata["keys"][0]
        assert name in question
        assert sample.metadata["attribute"] in question
        [paragraph] = [line for line in text.splitlines() if name in line.split(". ")[0]]
        assert re.search(rf"\b{sample.answer}\b", paragraph)
        others = [line for line in text.splitlines() if line != paragraph]
        assert not any(name in line for line in others)


def test_unknown_things_are_not_told() -> None:
    kinds = set()
    for sample in samples("unknown", 80, chat_share=1):
        text, question = text_and_question(sample)
        [key] = sample.metadata["keys"]
        assert key in question
        assert f"- {key}:" not in text
        assert not re.search(rf"\b{key}\b", text) or key.islower()
        assert sample.answer == UNKNOWN
        assert sample.metadata["told"] == bool(text)
        kinds.add((bool(text), key.islower()))
    assert kinds == {(told_any, lower) for told_any in (False, True) for lower in (False, True)}


def test_calculator_answers() -> None:
    spoken = {"plus": "+", "minus": "-", "times": "*"}
    numbers = set()
    for sample in samples("calc-tool", 150):
        sums = sample.metadata["keys"]
        assert all(asked in text_and_question(sample)[1] for asked in sums)
        formulas = [" ".join(spoken.get(word, word) for word in asked.split()) for asked in sums]
        assert all(re.fullmatch(r"[-+*() 0-9]+", formula) for formula in formulas)
        results = [str(eval(formula)) for formula in formulas]
        assert sample.answer == {1: "{}", 2: "{} and {}", 3: "{}, {} and {}"}[len(sums)].format(*results)
        assert [call.arguments["expression"] for call in expected_calls(sample)] == formulas
        assert [turn.text for turn in sample.turns if turn.role == "tool"] == results
        numbers.add(len(sums))
    assert numbers == {1, 2, 3}


def test_store_answers() -> None:
    unknown = 0
    for sample in samples("store-tool", 80, num_turns=(2, 8)):
        told_by_user: dict[str, str] = {}
        for position, turn in enumerate(sample.turns):
            if turn.role != "user":
                continue
            call = sample.turns[position + 1].calls[0]
            thing, name = call.arguments["key"].split(" of ")
            assert thing in turn.text
            assert name in turn.text
            reply = sample.turns[position + 3].text
            if call.name == "put":
                assert call.arguments["value"] in turn.text
                told_by_user[call.arguments["key"]] = call.arguments["value"]
                assert reply == "Saved."
            else:
                assert reply == told_by_user.get(call.arguments["key"], UNKNOWN)
                last = reply
        assert last == sample.answer
        unknown += last == UNKNOWN
    assert 3 < unknown < 30


def test_quick_answers() -> None:
    for sample in samples("quick", 90):
        text = sample.turns[0].text
        [place] = sample.metadata["keys"]
        about = [
            (d, topic) for d, group in TOPICS.items() for topic in group.training if f" {topic} in {place}" in text
        ]
        [(domain, topic)] = about
        wanted = {"<｜domain｜>": domain, "<｜query｜>": f"{topic} {place}", "<｜title｜>": f"{topic} in {place}"}
        assert sample.quick is not None
        assert sample.answer.lower() == wanted[sample.quick].lower()
