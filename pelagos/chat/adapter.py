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


class AnswerStream:
    """The library's StreamProcessor for one answer: ids or text in, chunks in the shape of Chat Completions out.

    ``finished`` becomes true at a stop string. Limits of the library that callers must know: the EOS id and turn marks
    are shown as text if pushed, an id out of range is ignored, a push of several ids that ends inside a character loses
    them all, tool arguments are not checked, and its own token counts leave ids out.
    """

    def __init__(
        self,
        tokenizer: OfficialTokenizer,
        *,
        thinking: bool,
        continues: Continues | None,
        tools: bool,
        stop: Sequence[str],
        json_output: bool,
    ) -> None:
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
        self._processor = recipe.StreamProcessor(generator, options, tokenizer.tokenizer)
        self._chunk = recipe.InferenceChunk
        self._reasons = {"stop": recipe.InferenceFinishReason.Stop, "length": recipe.InferenceFinishReason.Length}
        self._push(self._chunk.ready())

    @property
    def finished(self) -> bool:
        return self._processor.finished

    def push_ids(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Take ids whose bytes are whole characters."""
        return self._push(self._chunk.tokens(ids))

    def push_text(self, text: str) -> list[dict[str, Any]]:
        """Take the text of ids whose bytes are not UTF-8."""
        return self._push(self._chunk.text(text))

    def finish(self, reason: FinishReason) -> list[dict[str, Any]]:
        """End the answer; the last chunk holds the ``finish_reason`` that clients see."""
        chunks = self._push(self._chunk.finish(self._reasons[reason]))
        return chunks + [json.loads(chunk.to_json()) for chunk in self._processor.finish()]

    def _push(self, chunk: "deepseek_recipe.InferenceChunk") -> list[dict[str, Any]]:
        if self._processor.finished:  # at a stop string: the library refuses more
            return []
        return [json.loads(chunk.to_json()) for chunk in self._processor.push(chunk)]
