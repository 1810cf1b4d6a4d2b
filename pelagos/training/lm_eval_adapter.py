"""A model under EleutherAI's lm-evaluation-harness (the package lm_eval, extra ``eval``), by exact inference.

    import lm_eval
    results = lm_eval.simple_evaluate(model=lm_eval_model(model, tokenizer), tasks=["arc_easy"])

The harness asks three things of a model, by requests whose ``args`` are given below; ``Answerer`` does them without the
harness. Texts are plain: each starts a document, behind the start mark, and nothing is rendered as a conversation.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import UsageError
from pelagos.common.fields import check_value
from pelagos.model.transformer import Model
from pelagos.training.answers import greedy_answers, log_probabilities

SIDE_BY_SIDE = 16  # answers generated at once
MAX_ANSWER_TOKENS = 256  # where a request does not say


class Request(Protocol):
    """What the harness calls an Instance."""

    args: tuple[Any, ...]


def lm_eval_model(model: Model, tokenizer: Tokenizer) -> Any:
    """An ``lm_eval.api.model.LM``. ``model`` is on the functions for inference, as ``Model.load`` gives it.

    Raises UsageError if lm_eval is not installed.
    """
    try:
        base = importlib.import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise UsageError("the adapter needs the package lm_eval: pip install 'pelagos[eval]'") from error
    return type("PelagosLM", (Answerer, base), {})(model, tokenizer)


class Answerer:
    """The three kinds of requests."""

    def __init__(self, model: Model, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._model, self._tokenizer = model, tokenizer
        self._room = model.config.max_positions

    def loglikelihood(self, requests: Sequence[Request], **_: object) -> list[tuple[float, bool]]:
        """args: (context, continuation). The log-probability of the continuation, nats, and whether it is what greedy
        generation would give. Of texts longer than the model takes the end counts."""
        return [self._continuation(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Request], **_: object) -> list[float]:
        """args: (text,). The log-probability of all of it, nats, read in windows as long as the model takes; each
        starts behind the last token of the one before."""
        return [self._whole(*request.args) for request in requests]

    def generate_until(self, requests: Sequence[Request], **_: object) -> list[str]:
        """args: (context, {"until": texts that end the output and are cut off, "max_gen_toks": 256}). Greedy. Of a
        context too long to leave room for the answer the end counts."""
        texts: list[str] = []
        for first in range(0, len(requests), SIDE_BY_SIDE):
            texts += self._generate([request.args for request in requests[first : first + SIDE_BY_SIDE]])
        return texts

    def _continuation(self, context: str, continuation: str) -> tuple[float, bool]:
        text = context.rstrip()  # spaces between the two belong to the first token of the latter
        start = len(self._tokenizer.encode(text))
        ids = [self._tokenizer.bos_id, *self._tokenizer.encode(context + continuation)]
        num_wanted = max(1, len(ids) - 1 - start)
        ids = ids[-self._room - 1 :]  # the last is never read
        log_p, likeliest = log_probabilities(self._model, ids, start=max(1, len(ids) - num_wanted))
        return float(log_p.sum()), bool(likeliest.all())

    def _whole(self, text: str) -> float:
        ids = [self._tokenizer.bos_id, *self._tokenizer.encode(text)]
        starts = range(0, len(ids) - 1, self._room)
        return sum(float(log_probabilities(self._model, ids[i : i + self._room + 1])[0].sum()) for i in starts)

    def _generate(self, group: Sequence[tuple[Any, ...]]) -> list[str]:
        limits, stops, prompts = [], [], []
        for context, settings in group:
            limits.append(min(_limit(settings), self._room - 1))
            stops.append(_stops(settings))
            prompts.append([self._tokenizer.bos_id, *self._tokenizer.encode(context)][-(self._room - limits[-1]) :])
        stop_ids = self._tokenizer.stop_ids | set(self._model.config.eos_ids)
        answers = greedy_answers(
            self._model,
            prompts,
            limits,
            stop_ids=stop_ids,
            is_over=lambda i, answer: any(stop in self._tokenizer.decode(answer) for stop in stops[i]),
        )
        return [
            _before(self._tokenizer.decode(answer[:-1] if answer[-1] in stop_ids else answer), stop)
            for answer, stop in zip(answers, stops, strict=True)
        ]


def _limit(settings: Mapping[str, Any]) -> int:
    if settings.get("do_sample") or settings.get("temperature"):
        raise UsageError("do_sample and temperature must be off: the adapter generates greedily")
    limit: int = settings.get("max_gen_toks", MAX_ANSWER_TOKENS)
    check_value("max_gen_toks", limit, int, low=1)
    return limit


def _stops(settings: Mapping[str, Any]) -> list[str]:
    until = settings.get("until") or []
    return [text for text in ([until] if isinstance(until, str) else until) if text]


def _before(text: str, stops: Sequence[str]) -> str:
    """The text before the first of ``stops``."""
    return text[: min([len(text), *(place for stop in stops if (place := text.find(stop)) >= 0)])]
