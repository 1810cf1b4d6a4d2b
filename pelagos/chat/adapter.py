"""The one door to deepseek-recipe, DeepSeek's own converter between messages, prompts and answers.

No other module imports it, so that an upgrade of the library is an edit here and a difference in the golden files. It
is imported at the first call, never at import of this module.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pelagos.common.errors import ResourceError, TokenizerError, UsageError

if TYPE_CHECKING:
    import deepseek_recipe

Request: TypeAlias = "deepseek_recipe.ConversationRequest"
Continues: TypeAlias = Literal["reasoning", "content"]
FinishReason: TypeAlias = Literal["stop", "length"]
Protocol: TypeAlias = Literal["chat", "responses", "messages"]
Logprob: TypeAlias = tuple[float, Sequence[tuple[int, float]]]  # of a token, and of the likeliest ones in its place

# Any V4 text model: the library has one prompt format for all of them.
MODEL_NAME = "DeepSeek-V4-Pro"


def check_installed() -> None:
    """Raise ResourceError, with what to do, if deepseek-recipe cannot be imported."""
    try:
        import deepseek_recipe  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            f"chat needs deepseek-recipe, which cannot be imported ({error}): install it with `pip install "
            "'deepseek-recipe>=0.2,<0.3'` on a platform it has wheels for, which are Linux with glibc 2.28 or later "
            "(x86_64, aarch64; on Windows inside WSL) and macOS on Apple silicon, or go without --chat"
        ) from error


@dataclass(frozen=True, kw_only=True)
class OfficialTokenizer:
    """The library's tokenizer and its V4 prompt encoding, which holds a copy of it that takes 25 ms to make."""

    tokenizer: "deepseek_recipe.Tokenizer"
    encoding: "deepseek_recipe.DeepseekV4Encoding"


def load_tokenizer(path: Path) -> OfficialTokenizer:
    """Read a tokenizer.json file. Raises TokenizerError if the library cannot read it."""
    check_installed()
    from deepseek_recipe import DeepseekV4Encoding, Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except RuntimeError as error:
        raise TokenizerError(f"{path} cannot be read by deepseek-recipe: {error}") from error
    return OfficialTokenizer(tokenizer=tokenizer, encoding=DeepseekV4Encoding().with_tokenizer(tokenizer))


def convert(body: dict[str, Any]) -> Request:
    """Check and convert a Chat Completions body without its ``model``, by the rules of DeepSeek's API.

    Raises UsageError with the library's sentence. The body goes over as JSON text: the library bounds its depth.
    """
    check_installed()
    from deepseek_recipe import ChatCompletionRequest, ConversionError, ConversionOptions

    try:
        text = json.dumps({"model": MODEL_NAME, **body}, ensure_ascii=False, allow_nan=False)
        return ChatCompletionRequest(text).convert(ConversionOptions())
    except (ValueError, TypeError, RecursionError, ConversionError) as error:
        raise UsageError(f"the messages or tools cannot be rendered: {error}") from error


def encode(request: Request, tokenizer: OfficialTokenizer) -> tuple[list[int], str]:
    """Token ids and text of the V4 prompt. Raises TokenizerError if the vocabulary lacks a token that it needs."""
    encoding, conversation = tokenizer.encoding, request.conversation
    try:
        return encoding.encode(conversation), encoding.render_conversation(conversation).prompt
    except RuntimeError as error:
        raise TokenizerError(f"the prompt cannot be encoded: {error}") from error


def continues(request: Request) -> Continues | None:
    """Which part of the last assistant message the prompt leaves open (``prefix``), None if it opens a new one."""
    from deepseek_recipe import ThinkingInitialStage

    stage = request.parsing_options.thinking_initial_stage
    if stage == ThinkingInitialStage.ReasoningContinuation:
        return "reasoning"
    return "content" if stage == ThinkingInitialStage.ContentContinuation else None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """An assistant message of a conversation; ``calls``: id, name and arguments of each."""

    content: str
    reasoning: str | None
    calls: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A request of one of the three protocols as a conversation: what to render, and how its answer is to be read."""

    protocol: Protocol
    request: Request
    echo: "deepseek_recipe.ResponsesEcho | None" = None
    namespaces: dict[str, tuple[str, str]] | None = None

    @property
    def thinking(self) -> bool:
        return self.request.conversation.thinking_mode

    @property
    def has_tools(self) -> bool:
        """Whether the answer may hold calls."""
        return self.request.parsing_options.parse_tool_calls

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools as the prompt declares them, in the shape of Chat Completions, strict schemas made canonical."""
        return [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                    "strict": tool.strict,
                },
            }
            for tool in self.request.conversation.tools
        ]

    @property
    def turns(self) -> list[Turn]:
        """The assistant messages, in their order. The prompt has one assistant mark for each, and one more at its end
        unless the last of them is to be continued."""
        return [
            Turn(
                content=message.content,
                reasoning=message.reasoning_content,
                calls=tuple((call.id, call.name, call.arguments) for call in message.tool_calls or ()),
            )
            for message in self.request.conversation.messages
            if message.role == "assistant"
        ]

    @property
    def output_format(self) -> tuple[Literal["json_object", "json_schema", "regex"], Any] | None:
        """What the content must be: a kind, with its schema or expression."""
        conversation = self.request.conversation
        match conversation.response_format:
            case "json_object":
                return "json_object", None
            case "json_schema":
                return "json_schema", conversation.response_schema
            case "regex":
                return "regex", conversation.response_regex
        return None

    @property
    def stop(self) -> tuple[str, ...]:
        return tuple(self.request.parsing_options.stop_sequences)

    def max_tokens(self, num_prompt_tokens: int, context_length: int) -> int:
        """Tokens to generate at most: what was asked for or the API's default, cut to what the context has left."""
        asked = self.request.inference_options.max_tokens
        if asked is None:
            return self.request.resolve_max_tokens(num_prompt_tokens, context_length)
        return max(1, min(asked, context_length - num_prompt_tokens))


def convert_as(protocol: Protocol, body: dict[str, Any]) -> Conversion:
    """Check and convert a body of one of the protocols, without its ``model``. Raises UsageError."""
    check_installed()
    import deepseek_recipe as recipe

    options = recipe.ConversionOptions()
    try:
        made = _parsed(protocol, body)
        is_responses = protocol == "responses"
        echo = made.echo() if is_responses else None
        namespaces = made.namespace_tool_map(options) if is_responses else None
        return Conversion(protocol=protocol, request=made.convert(options), echo=echo, namespaces=namespaces)
    except recipe.ConversionError as error:
        raise UsageError(_sentence(error.body)) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{_culprit(protocol, body)} cannot be used: {error}") from error


def _parsed(protocol: Protocol, body: dict[str, Any]) -> Any:
    import deepseek_recipe as recipe

    types = {"chat": recipe.ChatCompletionRequest, "responses": recipe.ResponsesRequest}
    text = json.dumps({**body, "model": MODEL_NAME}, ensure_ascii=False, allow_nan=False)
    return types.get(protocol, recipe.MessagesRequest)(text)


def _culprit(protocol: Protocol, body: dict[str, Any]) -> str:
    """The field, or the entry of a list, that the library cannot read: it says what is wrong and not where."""
    least: dict[str, Any] = {"input": ""} if protocol == "responses" else {"messages": []}
    least |= {"max_tokens": 1} if protocol == "messages" else {}

    def is_wrong(name: str, value: Any) -> bool:
        try:
            _parsed(protocol, {**least, name: value})
        except (ValueError, TypeError, RecursionError):
            return True
        return False

    for name, value in body.items():
        if is_wrong(name, value):
            entries = value if isinstance(value, list) else []
            place = next((place for place, entry in enumerate(entries) if is_wrong(name, [entry])), None)
            return name if place is None else f"{name}[{place}]"
    return "the body"


def _sentence(body: str) -> str:
    """The message in the library's error body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body


class AnswerStream:
    """The library's StreamProcessor for one answer: ids or text in, chunks in the shape of a protocol out.

    ``finished`` becomes true at a stop string. ``may_join``: whether ids that are pushed together give what they give
    one by one; with stop strings the end would be noticed late, and JSON output shows spaces for what a push left out.
    Limits of the library that callers must know: the EOS id and turn marks are shown as text if pushed, an id out of
    range is ignored, a push of several ids that ends inside a character loses them all, tool arguments are not checked,
    and its own token counts leave ids out.
    """

    def __init__(
        self, generator: Any, options: "deepseek_recipe.ParsingOptions", tokenizer: OfficialTokenizer, collected: Any
    ) -> None:
        """Use ``plain`` or ``of_request``; ``collected`` adds the chunks up."""
        import deepseek_recipe as recipe

        self.may_join = not options.stop_sequences and not options.parse_json_output
        self._processor = recipe.StreamProcessor(generator, options, tokenizer.tokenizer)
        self._collected = collected
        self._chunk = recipe.InferenceChunk
        self._usage = recipe.PromptUsage
        self._reasons = {"stop": recipe.InferenceFinishReason.Stop, "length": recipe.InferenceFinishReason.Length}

    @classmethod
    def plain(
        cls,
        tokenizer: OfficialTokenizer,
        *,
        thinking: bool,
        continues: Continues | None,
        tools: bool,
        stop: Sequence[str],
        json_output: bool,
    ) -> "AnswerStream":
        """An answer in chunks of Chat Completions, without a request; ready for the first id."""
        import deepseek_recipe as recipe

        stages = recipe.ThinkingInitialStage
        stage = {
            None: stages.ReasoningStart,
            "reasoning": stages.ReasoningContinuation,
            "content": stages.ContentContinuation,
        }
        options = recipe.ParsingOptions(
            parse_tool_calls=tools,
            parse_json_output=json_output,
            thinking_initial_stage=stage[continues] if thinking else None,
            stop_sequences=list(stop),
        )
        request = recipe.ConversationRequest(
            recipe.Conversation(thinking_mode=thinking), recipe.ModelVersion.DeepseekV4Pro
        )
        generator = recipe.ChatCompletionRequest.chunk_generator(request, "", MODEL_NAME)
        stream = cls(generator, options, tokenizer, None)
        stream.ready()
        return stream

    @classmethod
    def of_request(
        cls, conversion: Conversion, tokenizer: OfficialTokenizer, *, response_id: str, model: str, created: int
    ) -> "AnswerStream":
        """The answer to a request, in its protocol; call ``ready`` first. ``model``: the name that the answer shows."""
        import deepseek_recipe as recipe

        generator: Any
        collected: Any
        request, counts = conversion.request, (response_id, model, created, 0, 0)
        match conversion.protocol:
            case "chat":
                generator = recipe.ChatCompletionRequest.chunk_generator(request, response_id, model)
                collected = recipe.ChatCompletionResponse(*counts)
            case "messages":
                generator = recipe.MessagesRequest.chunk_generator(request, response_id, model)
                collected = recipe.MessagesResponse(*counts)
            case "responses":
                generator = recipe.ResponsesRequest.chunk_generator(request, response_id, model)
                assert conversion.echo is not None
                generator = generator.with_echo(conversion.echo)
                if conversion.namespaces:
                    generator = generator.with_namespace_tool_map(conversion.namespaces)
                collected = recipe.ResponsesResponse(*counts)
        return cls(generator, request.parsing_options, tokenizer, collected)

    @property
    def finished(self) -> bool:
        return self._processor.finished

    @property
    def collected(self) -> dict[str, Any]:
        """The whole answer in the shape that the protocol has without streaming, as far as it has come."""
        answer: dict[str, Any] = json.loads(self._collected.to_json())
        return answer

    def ready(
        self, *, num_prompt_tokens: int = 0, num_cached: int = 0, fingerprint: str | None = None
    ) -> list[dict[str, Any]]:
        """Begin the answer."""
        usage = self._usage(prompt_tokens=num_prompt_tokens, prompt_cache_hit_tokens=num_cached)
        return self._push(self._chunk.ready(prompt_usage=usage, system_fingerprint=fingerprint))

    def push_ids(self, ids: Sequence[int], logprobs: Sequence[Logprob] | None = None) -> list[dict[str, Any]]:
        """Take ids whose bytes are whole characters, with one of ``logprobs`` each where the answer shows them."""
        return self._push(self._chunk.tokens(ids, logprobs))

    def push_text(self, text: str) -> list[dict[str, Any]]:
        """Take the text of ids whose bytes are not UTF-8."""
        return self._push(self._chunk.text(text))

    def finish(self, reason: FinishReason) -> list[dict[str, Any]]:
        """End the answer; the last chunks hold the finish reason that clients see."""
        chunks = self._push(self._chunk.finish(self._reasons[reason]))
        return chunks + self._taken(self._processor.finish())

    def _push(self, chunk: "deepseek_recipe.InferenceChunk") -> list[dict[str, Any]]:
        if self._processor.finished:  # at a stop string: the library refuses more
            return []
        return self._taken(self._processor.push(chunk))

    def _taken(self, chunks: Sequence[Any]) -> list[dict[str, Any]]:
        shown = [json.loads(chunk.to_json()) for chunk in chunks]
        if self._collected is not None:
            for chunk in chunks:
                self._collected.accumulate(chunk)
        return shown
