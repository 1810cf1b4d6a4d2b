"""POST /v1/completions: text goes on as it is, without roles; with ``suffix`` the middle is filled in."""

import time
from collections.abc import Mapping
from typing import Any

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.fields import show
from pelagos.engine.request import Finished, Request, checked_prompt
from pelagos.serving import fields
from pelagos.serving.answer import Answer, Frame, count
from pelagos.serving.bridge import NewTokens
from pelagos.serving.chat import STREAM_OPTIONS, chat_usage, check_prompt_length, decoder_maker
from pelagos.serving.errors import ApiError, body
from pelagos.serving.fields import FieldTable
from pelagos.serving.respond import Prepared
from pelagos.serving.sampling import FIELDS as SAMPLING
from pelagos.serving.sampling import sampling_params
from pelagos.serving.state import Call, Server, fair_share, namespace, new_id

TABLE = FieldTable(
    acts=(
        *("model", "prompt", "suffix", "max_tokens", "n", "stop", "stream", "stream_options", "logprobs", "user"),
        *("user_id", *SAMPLING),
    ),
    only={"echo": (False,), "best_of": (1,)},
)
DEFAULT_MAX_TOKENS = 16
FIM_BEGIN, FIM_HOLE, FIM_END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"


def prepare_completion(server: Server, call: Call, given: dict[str, Any]) -> Prepared:
    """Check a body. Raises ApiError or a PelagosError that names the field."""
    asked = TABLE.checked(given)
    server.resolve_model(asked.get("model"))
    limits = server.config.limits
    num_choices = fields.whole(asked, "n", 1, limits.max_choices, 1)
    asked_tokens = fields.whole(asked, "max_tokens", 1, 1 << 40, DEFAULT_MAX_TOKENS)
    assert num_choices is not None
    assert asked_tokens is not None
    logprobs = fields.whole(asked, "logprobs", 0, 20)
    prompts = _prompts(asked.get("prompt", ""), fields.text(asked, "suffix", 1 << 30), server, limits.max_prompts)
    stop = _stops(asked.get("stop"))
    user_id, user = fields.text(asked, "user_id", 512), fields.text(asked, "user", 512)
    requests = []
    for prompt_ids in prompts:
        check_prompt_length(len(prompt_ids), server.context_length)
        max_tokens = min(asked_tokens, server.context_length - len(prompt_ids))
        requests.append(
            Request(
                prompt_ids=prompt_ids,
                params=sampling_params(
                    asked, server.config, server.tokenizer, max_tokens=max_tokens, stop=stop, logprobs=logprobs
                ),
                num_choices=num_choices,
                decoder=decoder_maker(server),
                namespace=namespace(call, user_id),
                user=fair_share(call, user_id or user),
                timeout=server.config.request_timeout,
            )
        )
    stream = fields.boolean(asked, "stream")
    options = STREAM_OPTIONS.checked(fields.obj(asked, "stream_options"), "stream_options")
    if options and not stream:
        raise ApiError(400, "stream_options may be given with stream alone", param="stream_options")
    include_usage = fields.boolean(options, "include_usage") or not stream
    answer = CompletionAnswer(server, len(prompts), num_choices, logprobs is not None, include_usage)
    return Prepared(requests=requests, answer=answer, stream=stream, protocol="completions")


def _prompts(prompt: object, suffix: str | None, server: Server, most: int) -> list[list[int]]:
    """Every prompt as ids. A text starts a new document: the start token comes before it. Ids are taken as they are."""
    tokenizer = server.tokenizer
    if isinstance(prompt, str):
        return [_document(tokenizer, prompt, suffix)]
    if isinstance(prompt, list) and prompt and suffix is None:
        if all(type(part) is int for part in prompt):
            return [_checked_ids(prompt, server)]
        if len(prompt) > most:
            raise ApiError(400, f"prompt must be at most {most} prompts, got {len(prompt)}", param="prompt")
        if all(isinstance(part, str) for part in prompt):
            return [_document(tokenizer, part, None) for part in prompt]
        if all(isinstance(part, list) and part for part in prompt):
            return [_checked_ids(part, server) for part in prompt]
    if suffix is not None:
        raise ApiError(400, "suffix must come with a prompt that is one text", param="suffix")
    raise ApiError(
        400,
        f"prompt must be a text, a list of texts, token ids, or a list of lists of them, got {show(prompt)}",
        param="prompt",
    )


def _checked_ids(ids: list[Any], server: Server) -> list[int]:
    return checked_prompt(ids, server.engine.model.config.vocab_size, server.context_length)


def _document(tokenizer: Tokenizer, text: str, suffix: str | None) -> list[int]:
    """The prompt of a text; with a suffix, the official order for filling in the middle."""
    ids = tokenizer.encode(text)
    if suffix is None:
        return [tokenizer.bos_id, *ids]
    begin, hole, end = map(tokenizer.encode_special, (FIM_BEGIN, FIM_HOLE, FIM_END))
    return [tokenizer.bos_id, begin, *ids, hole, *tokenizer.encode(suffix), end]


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ApiError(400, f"stop must be a text or a list of at most 16 texts, got {show(value)}", param="stop")
    return tuple(stops)


class CompletionAnswer(Answer):
    """A text completion, or its chunks. Choices are numbered through all prompts."""

    def __init__(self, server: Server, num_prompts: int, num_choices: int, logprobs: bool, include_usage: bool) -> None:
        self.id = new_id("cmpl-")
        self._created = int(time.time())
        self._server = server
        self._num_choices = num_choices
        self._logprobs = logprobs
        self._include_usage = include_usage
        total = num_prompts * num_choices
        self._texts = [""] * total
        self._all_logprobs: list[dict[str, list[Any]]] = [_no_logprobs() for _ in range(total)]
        self._reasons: list[str | None] = [None] * total
        self._usage: dict[str, Any] = {}

    @property
    def is_done(self) -> bool:
        return False  # the engine finds every end by itself

    def begin(self, num_cached: int) -> list[Frame]:
        return []

    def tokens(self, news: NewTokens) -> list[Frame]:
        index = news.request * self._num_choices + news.choice
        logprobs = self._added_logprobs(index, news) if self._logprobs else None
        self._texts[index] += news.text
        if not news.text and not logprobs:
            return []
        return [(None, self._chunk([self._choice(index, news.text, logprobs, None)]))]

    def end(self, finished: Mapping[int, Finished], trouble: ApiError | None) -> list[Frame]:
        self._usage = chat_usage(count(finished))
        frames: list[Frame] = []
        for number, end in sorted(finished.items()):
            for position, answer in enumerate(end.answers):
                index = number * self._num_choices + position
                reason = answer.finish_reason
                self._reasons[index] = reason if reason in ("stop", "length") else "insufficient_system_resource"
                frames.append((None, self._chunk([self._choice(index, "", None, self._reasons[index])])))
        if trouble is not None:
            return [*frames, (None, body(trouble, "openai", self.id)), (None, "[DONE]")]
        if self._include_usage:
            frames.append((None, {**self._chunk([]), "usage": self._usage}))
        return [*frames, (None, "[DONE]")]

    def keep(self) -> None:
        """Nothing: clients that send such a text back send it as a prompt, which is taken as it is."""

    def result(self) -> dict[str, Any]:
        choices = [
            self._choice(index, text, self._all_logprobs[index] if self._logprobs else None, self._reasons[index])
            for index, text in enumerate(self._texts)
        ]
        return {**self._chunk(choices), "usage": self._usage}

    def _added_logprobs(self, index: int, news: NewTokens) -> dict[str, list[Any]]:
        """Of new tokens, in the old API's form: parallel lists."""
        tokenizer = self._server.tokenizer
        added, whole = _no_logprobs(), self._all_logprobs[index]
        offset = len(self._texts[index])
        for token in news.tokens:
            if token.token_id in tokenizer.stop_ids:
                continue
            text = tokenizer.decode([token.token_id])
            added["tokens"].append(text)
            added["token_logprobs"].append(token.logprob)
            added["top_logprobs"].append({tokenizer.decode([top]): value for top, value in token.top_logprobs})
            added["text_offset"].append(offset)
            offset += len(text)
        for name, values in added.items():
            whole[name] += values
        return added if added["tokens"] else {}

    def _choice(self, index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"text": text, "index": index, "logprobs": logprobs or None, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._server.config.model_name,
            "system_fingerprint": self._server.fingerprint,
            "choices": choices,
        }


def _no_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
