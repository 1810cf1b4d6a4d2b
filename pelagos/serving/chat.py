"""POST /v1/chat/completions: the API of OpenAI with DeepSeek's fields."""

import time
from collections.abc import Mapping
from typing import Any

from pelagos.chat.adapter import AnswerStream, Conversion, convert_as, encode
from pelagos.chat.parse import TokenFeed, chat_chunk_reasons
from pelagos.chat.tokenizer import IncrementalDecoder
from pelagos.common.fields import show
from pelagos.engine.request import Finished, Request
from pelagos.serving import fields
from pelagos.serving.answer import Answer, Choice, Counts, Frame, Keeper, count
from pelagos.serving.bridge import NewTokens
from pelagos.serving.chat_chunks import joined
from pelagos.serving.chat_messages import checked_messages
from pelagos.serving.constraints import ToolChoice, check_choice, constraint_state
from pelagos.serving.errors import ApiError, body
from pelagos.serving.fields import FieldTable
from pelagos.serving.limits import check_counts
from pelagos.serving.respond import Prepared
from pelagos.serving.sampling import FIELDS as SAMPLING
from pelagos.serving.sampling import sampling_params
from pelagos.serving.state import Call, Server, fair_share, namespace, new_id

TABLE = FieldTable(
    acts=(
        *("model", "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
        *("thinking", "reasoning_effort", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop"),
        *("n", "logprobs", "top_logprobs", "user", "user_id", "safety_identifier"),
        *SAMPLING,
    ),
    only={
        "store": (False,),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "verbosity": ("medium",),
        "metadata": ({},),
    },
    hints=("prompt_cache_key", "prompt_cache_retention"),
    refused={
        "functions": "declare tools instead",
        "function_call": "use tool_choice instead",
        "audio": "the model writes text alone",
        "prediction": "the server guesses ahead by itself",
        "web_search_options": "the server does not search the web",
    },
)
STREAM_OPTIONS = FieldTable(acts=("include_usage",), only={"include_obfuscation": (False,)})
# What goes to the converter as it came: it checks these and puts them into the prompt.
CONVERTED = (
    *("messages", "tools", "thinking", "response_format", "stream", "stream_options", "stop", "temperature", "top_p"),
    *("seed", "logprobs", "top_logprobs"),
)
DEFAULT_EFFORT = "high"


def prepare_chat(server: Server, call: Call, given: dict[str, Any]) -> Prepared:
    """Check and render a body. Raises ApiError or a PelagosError that names the field."""
    asked, conversion, choice = _converted(server, given)
    num_choices = fields.whole(asked, "n", 1, server.config.limits.max_choices, 1)
    assert num_choices is not None
    stream = fields.boolean(asked, "stream")
    include_usage = fields.boolean(
        STREAM_OPTIONS.checked(fields.obj(asked, "stream_options"), "stream_options"), "include_usage"
    )
    logprobs = fields.whole(asked, "top_logprobs", 0, 20, 0) if asked.get("logprobs") else None
    request = engine_request(
        server,
        call,
        asked,
        conversion,
        choice,
        num_choices=num_choices,
        logprobs=logprobs,
        user_id=asked.get("user_id"),
    )
    answer = ChatAnswer(server, conversion, request, logprobs is not None, include_usage or not stream)
    return Prepared(requests=[request], answer=answer, stream=stream, protocol="chat")


def prepare_chat_conversion(server: Server, given: dict[str, Any]) -> Conversion:
    """A body as the conversation that would be rendered."""
    return _converted(server, given)[1]


def _converted(server: Server, given: dict[str, Any]) -> tuple[dict[str, Any], Conversion, ToolChoice]:
    asked = TABLE.checked(given)
    fields.check_types(asked)
    check_counts(asked, server.config.limits, "messages")
    server.resolve_model(asked.get("model"))
    asked["messages"] = checked_messages(asked.get("messages"))
    choice = tool_choice(asked)
    conversion = convert_as("chat", _converter_body(server, asked, choice))
    check_choice(choice, [tool["function"]["name"] for tool in conversion.tools])
    return asked, conversion, choice


def engine_request(
    server: Server,
    call: Call,
    asked: Mapping[str, Any],
    conversion: Conversion,
    choice: ToolChoice,
    *,
    num_choices: int = 1,
    logprobs: int | None = None,
    user_id: str | None = None,
    schema: Mapping[str, Any] | bool | None = None,
) -> Request:
    """What the engine is to do for a converted request of any protocol."""
    for name in ("user", "user_id", "safety_identifier"):
        fields.text(asked, name, 512)
    shared = namespace(call, user_id)
    prompt_ids = prompt_of(server, shared, conversion)
    check_prompt_length(len(prompt_ids), server.context_length)
    params = sampling_params(
        asked,
        server.config,
        server.tokenizer,
        max_tokens=conversion.max_tokens(len(prompt_ids), server.context_length),
        logprobs=logprobs,
    )
    return Request(
        prompt_ids=prompt_ids,
        params=params,
        num_choices=num_choices,
        constraint=constraint_state(conversion, choice, server.tokenizer, prompt_ids, schema),
        namespace=shared,
        user=fair_share(call, user_id or asked.get("user") or asked.get("safety_identifier")),
        timeout=server.config.request_timeout,
    )


def prompt_of(server: Server, shared: str, conversion: Conversion) -> list[int]:
    """The ids of a conversation; turns that the model wrote in the namespace ``shared`` are there as it wrote them."""
    prompt_ids, _ = encode(conversion.request, server.tokenizer.official)
    return server.turns.restored(shared, conversion, prompt_ids)


def check_prompt_length(num_tokens: int, context_length: int) -> None:
    """Raise ApiError if the prompt leaves no place for an answer."""
    if num_tokens >= context_length:
        raise ApiError(
            400,
            f"the prompt has {num_tokens} tokens and the context of this model {context_length}, which must hold the "
            "prompt and at least one token of an answer",
            code="context_length_exceeded",
        )


def tool_choice(asked: Mapping[str, Any]) -> ToolChoice:
    """What ``tool_choice`` and ``parallel_tool_calls`` say. Raises ApiError for other forms."""
    parallel = fields.boolean(asked, "parallel_tool_calls", True)
    value = asked.get("tool_choice", "auto")
    if value in ("auto", "none", "required"):
        return ToolChoice(mode=value, parallel=parallel)
    function = value.get("function", value) if isinstance(value, dict) and value.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(
            400,
            'tool_choice must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}}, got '
            f"{show(value)}",
            param="tool_choice",
        )
    return ToolChoice(mode="named", name=function["name"], parallel=parallel)


def effort_fields(server: Server, word: object, thinking: object) -> dict[str, Any]:
    """``thinking`` and ``reasoning_effort`` for the converter: the checkpoint's level for the user's word."""
    levels = server.effort_levels.levels
    if word is not None and (not isinstance(word, str) or word not in levels):
        raise ApiError(
            400, f"reasoning_effort must be one of {', '.join(levels)}, got {show(word)}", param="reasoning_effort"
        )
    if thinking is not None and not isinstance(thinking, dict):
        raise ApiError(
            400, f'thinking must be an object such as {{"type": "enabled"}}, got {show(thinking)}', param="thinking"
        )
    is_off = thinking is not None and thinking.get("type") == "disabled"
    level = server.effort_levels.resolve(str(word or DEFAULT_EFFORT))
    if is_off or level == "none":
        return {"thinking": {"type": "disabled"}}
    return {"thinking": {"type": "enabled"} if thinking is None else thinking, "reasoning_effort": level}


def _converter_body(server: Server, asked: Mapping[str, Any], choice: ToolChoice) -> dict[str, Any]:
    converted = {name: asked[name] for name in CONVERTED if name in asked}
    converted |= effort_fields(server, asked.get("reasoning_effort"), asked.get("thinking"))
    most = asked.get("max_completion_tokens", asked.get("max_tokens"))
    if most is not None:
        converted["max_tokens"] = most
    # While thinking the converter knows no forced choice: there the grammar alone forces it.
    thinking_is_off = converted["thinking"].get("type") == "disabled"
    if "tool_choice" in asked and asked.get("tools"):
        converted["tool_choice"] = "auto" if choice.is_forced and not thinking_is_off else asked["tool_choice"]
    return converted


class ChatAnswer(Answer):
    """A chat completion, or its chunks."""

    def __init__(
        self,
        server: Server,
        conversion: Conversion,
        request: Request,
        logprobs: bool,
        include_usage: bool,
    ) -> None:
        self.id = new_id("chatcmpl-")
        self._created = int(time.time())
        self._server = server
        self._num_prompt_tokens = len(request.prompt_ids)
        self._keeper = Keeper(server, conversion, request)
        self._include_usage = include_usage
        self._choices: list[Choice] = []
        self._usage: dict[str, Any] | None = None
        self._has_trouble = False
        for _ in range(request.num_choices):
            stream = AnswerStream.of_request(
                conversion,
                server.tokenizer.official,
                response_id=self.id,
                model=server.config.model_name,
                created=self._created,
            )
            self._choices.append(
                Choice(
                    stream,
                    TokenFeed(server.tokenizer, stream, chat_chunk_reasons, skips_unknown=True),
                    logprobs=logprobs,
                )
            )

    @property
    def is_done(self) -> bool:
        return all(choice.feed.finished for choice in self._choices)

    def begin(self, num_cached: int) -> list[Frame]:
        frames = []
        for index, choice in enumerate(self._choices):
            chunks = choice.stream.ready(
                num_prompt_tokens=self._num_prompt_tokens,
                num_cached=num_cached,
                fingerprint=self._server.fingerprint,
            )
            frames += self._frames(index, chunks)
        return frames

    def tokens(self, news: NewTokens) -> list[Frame]:
        return self._frames(news.choice, joined(self._choices[news.choice].tokens(news)))

    def end(self, finished: Mapping[int, Finished], trouble: ApiError | None) -> list[Frame]:
        [end] = finished.values()
        self._has_trouble = trouble is not None
        frames = []
        for index, choice in enumerate(self._choices):
            frames += self._frames(index, joined(choice.end(end.answers[index] if end.answers else None)))
        self._usage = chat_usage(count(finished, self._choices))
        if trouble is not None:
            return [*frames, (None, body(trouble, "openai", self.id)), (None, "[DONE]")]
        if self._include_usage:
            head = {"id": self.id, "object": "chat.completion.chunk", "created": self._created}
            head |= {"model": self._server.config.model_name, "system_fingerprint": self._server.fingerprint}
            frames.append((None, {**head, "choices": [], "usage": self._usage}))
        return [*frames, (None, "[DONE]")]

    def keep(self) -> None:
        for choice in self._choices:
            message = choice.stream.collected["choices"][0]["message"]
            self._keeper.keep(choice, [call["id"] for call in message.get("tool_calls") or ()])

    def result(self) -> dict[str, Any]:
        whole = [choice.stream.collected for choice in self._choices]
        choices = [{**part["choices"][0], "index": index} for index, part in enumerate(whole)]
        for choice in choices:
            for call in choice["message"].get("tool_calls") or ():
                call.pop("index", None)
        return {**whole[0], "id": self.id, "choices": choices, "usage": self._usage}

    def _frames(self, index: int, chunks: list[dict[str, Any]]) -> list[Frame]:
        frames: list[Frame] = []
        for chunk in chunks:
            for choice in chunk["choices"]:
                choice["index"] = index
                if choice["finish_reason"] is not None and self._has_trouble:
                    choice["finish_reason"] = "insufficient_system_resource"
            chunk["created"] = self._created
            if not self._include_usage:
                chunk.pop("usage", None)
            else:
                chunk["usage"] = None
            frames.append((None, chunk))
        return frames


def chat_usage(counts: Counts) -> dict[str, Any]:
    """Usage in the words of OpenAI and of DeepSeek."""
    return {
        "prompt_tokens": counts.num_prompt,
        "completion_tokens": counts.num_generated,
        "total_tokens": counts.num_prompt + counts.num_generated,
        "prompt_tokens_details": {"cached_tokens": counts.num_cached},
        "completion_tokens_details": {"reasoning_tokens": counts.num_reasoning},
        "prompt_cache_hit_tokens": counts.num_cached,
        "prompt_cache_miss_tokens": counts.num_prompt - counts.num_cached,
        "pelagos": counts.extra,
    }


def decoder_maker(server: Server) -> Any:
    """Makes the decoders of answers that are plain text; special tokens have none."""
    return lambda: IncrementalDecoder(server.tokenizer, skip_special=True)
