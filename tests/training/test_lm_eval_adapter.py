"""What the adapter answers, against Model.logits and hand-made greedy generation; the harness itself is not needed."""

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from evaluation_case import WORDS, Parrot, config, exact, tokenizer, untrained

from pelagos.common.errors import ConfigError, UsageError
from pelagos.model.transformer import Model
from pelagos.training.lm_eval_adapter import Answerer, Request, lm_eval_model


def request(*args: Any) -> Request:
    return cast(Request, SimpleNamespace(args=args))


def tokens(text: str) -> list[int]:
    return [tokenizer().bos_id, *tokenizer().encode(text)]


def cost(model: Model, ids: list[int], start: int) -> float:
    log_p = torch.log_softmax(model.logits(ids[:-1]).double(), 1)
    return float(log_p[torch.arange(start - 1, len(ids) - 1), ids[start:]].sum())


@pytest.mark.parametrize(
    ("context", "rest"), [("the sea is", " deep and wide"), ("the sea is ", "deep and wide"), ("", "ship")]
)
def test_loglikelihood(context: str, rest: str) -> None:
    model = exact(untrained())
    [(log_p, greedy)] = Answerer(model, tokenizer()).loglikelihood([request(context, rest)])
    ids, start = tokens(context + rest), len(tokens(context.rstrip()))
    assert log_p == pytest.approx(cost(model, ids, start), rel=1e-12)
    assert greedy is False


def test_a_greedy_continuation_is_told() -> None:
    model = exact(untrained())
    found = 0
    for word in WORDS:
        ids = tokens(word)
        best = int(model.logits(ids)[-1].argmax())
        rest = tokenizer().decode([best], skip_special=True)
        if tokens(word + rest) == [*ids, best]:  # the text has no other tokens
            found += 1
            assert Answerer(model, tokenizer()).loglikelihood([request(word, rest)])[0][1] is True
    assert found


def test_of_a_long_text_the_end_counts() -> None:
    model = exact(untrained(config(max_positions=9)))
    text = "the sea is deep and wide but a ship goes over it by night"
    ids = tokens(text)
    assert len(ids) > 12
    [(log_p, _)] = Answerer(model, tokenizer()).loglikelihood([request(text[:-6], text[-6:])])
    kept = ids[-10:]
    num_wanted = len(ids) - len(tokens(text[:-6]))
    assert log_p == pytest.approx(cost(model, kept, len(kept) - num_wanted), rel=1e-12)


def test_loglikelihood_rolling() -> None:
    text = "the sea is deep and wide but a ship goes over it by night"
    ids = tokens(text)
    whole, windows = exact(untrained()), exact(untrained(config(max_positions=9)))
    assert Answerer(whole, tokenizer()).loglikelihood_rolling([request(text)]) == [
        pytest.approx(cost(whole, ids, 1), rel=1e-12)
    ]
    expected = sum(cost(whole, ids[at : at + 10], 1) for at in range(0, len(ids) - 1, 9))
    assert Answerer(windows, tokenizer()).loglikelihood_rolling([request(text), request("")]) == [
        pytest.approx(expected, rel=1e-12),
        0.0,
    ]


def test_generate_until() -> None:
    known = [[*tokens("the sea"), *tokenizer().encode(" is deep and wide\nbut a ship"), tokenizer().eos_id]]
    answerer = Answerer(cast(Model, Parrot(known)), tokenizer())
    requests: list[tuple[dict[str, Any], str]] = [
        ({}, " is deep and wide\nbut a ship"),
        ({"until": ["\n", "wide"]}, " is deep and "),
        ({"until": "\n", "do_sample": False, "temperature": 0.0}, " is deep and wide"),
        ({"until": [], "max_gen_toks": 1}, tokenizer().decode(tokenizer().encode(" is deep")[:1])),
    ]
    found = answerer.generate_until([request("the sea", settings) for settings, _ in requests])
    assert found == [text for _, text in requests]
    assert answerer.generate_until([]) == []


def test_a_context_leaves_room_for_the_answer() -> None:
    ids = tokenizer().encode("the sea is deep and wide")
    parrot = Parrot([[*ids[-6:], 70, 71, 72, 73]], max_positions=10)
    [text] = Answerer(cast(Model, parrot), tokenizer()).generate_until(
        [request("the sea is deep and wide", {"max_gen_toks": 4})]
    )
    assert text == tokenizer().decode([70, 71, 72, 73])


def test_sampling_and_bad_limits_are_refused() -> None:
    answerer = Answerer(cast(Model, Parrot([])), tokenizer())
    for settings in ({"do_sample": True}, {"temperature": 0.7}):
        with pytest.raises(UsageError, match="must be off"):
            answerer.generate_until([request("a", settings)])
    with pytest.raises(ConfigError, match="max_gen_toks must be a whole number of at least 1, got 0"):
        answerer.generate_until([request("a", {"max_gen_toks": 0})])


def test_the_harness_gets_a_model_of_its_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    class LM:
        def __init__(self) -> None:
            self.rank = 0

    module = ModuleType("lm_eval.api.model")
    module.LM = LM  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", module)
    found = lm_eval_model(cast(Model, Parrot([])), tokenizer())
    assert isinstance(found, LM)
    assert found.rank == 0
    assert found.loglikelihood_rolling([]) == []


def test_a_missing_harness_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"needs the package lm_eval: pip install 'pelagos\[eval\]'"):
        lm_eval_model(cast(Model, Parrot([])), tokenizer())
