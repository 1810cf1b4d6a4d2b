"""``pelagos generate``: one prompt to one output, as text while it comes or as one JSON object."""

import json
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelagos.cli.loading import DtypeOption, Rounding, RoundingOption, load
from pelagos.cli.options import MODEL_HELP, Device, Json, Threads, use_threads
from pelagos.cli.progress import PatientBar
from pelagos.cli.prompt import GivenPrompt
from pelagos.common.errors import UsageError
from pelagos.engine.params import SamplingParams
from pelagos.model.places import model_place

if TYPE_CHECKING:
    from pelagos.chat.tokenizer import Tokenizer
    from pelagos.engine.offline import Generation, Progress, Token
    from pelagos.model.transformer import Model

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def _sampling(name: str, *flags: str) -> Any:
    """An option with the help and the range of a field of SamplingParams."""
    setting = next(field for field in fields(SamplingParams) if field.name == name).metadata
    text = setting["help"]
    return typer.Option(
        *flags,
        help=f"{text[0].upper()}{text[1:]}.",
        min=setting["low"],
        max=setting["high"],
        rich_help_panel="Sampling",
    )


def _prompt(text: str, *flags: str) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel="Prompt (exactly one of the first three)")


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Prompt = Annotated[str | None, _prompt("The text to continue, or with --chat the user's message.")]
PromptFile = Annotated[str | None, _prompt("A UTF-8 file with it; - is standard input.")]
PromptTokens = Annotated[str | None, _prompt("Token ids with commas, such as 0,17,42.")]
Chat = Annotated[bool, _prompt("Render the prompt as a user's turn.", "--chat")]
Thinking = Annotated[bool, _prompt("With --chat: let the model think first.", "--thinking/--no-thinking")]
Effort = Annotated[str | None, _prompt("With --chat: how much to think, such as low, high or max. Default: high.")]
MaxTokens = Annotated[int, _sampling("max_tokens")]
Temperature = Annotated[float, _sampling("temperature")]
TopP = Annotated[float, _sampling("top_p")]
TopK = Annotated[int | None, _sampling("top_k")]
MinP = Annotated[float, _sampling("min_p")]
RepetitionPenalty = Annotated[float, _sampling("repetition_penalty")]
PresencePenalty = Annotated[float, _sampling("presence_penalty")]
FrequencyPenalty = Annotated[float, _sampling("frequency_penalty")]
Seed = Annotated[int | None, _sampling("seed")]
Stop = Annotated[
    list[str],
    typer.Option(help="A text that ends the output and is cut off; up to 16 times.", rich_help_panel="Sampling"),
]
Logprobs = Annotated[int | None, _sampling("logprobs")]  # with --json
IgnoreEos = Annotated[bool, _sampling("ignore_eos", "--ignore-eos")]
PrefillChunk = Annotated[
    int, typer.Option(min=1, help="Prompt tokens read at a time; bounds memory.", rich_help_panel="Machine")
]


def generate_command(
    model: ModelName,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    prompt_tokens: PromptTokens = None,
    chat: Chat = False,
    thinking: Thinking = True,
    effort: Effort = None,
    max_tokens: MaxTokens = SamplingParams.max_tokens,
    temperature: Temperature = SamplingParams.temperature,
    top_p: TopP = SamplingParams.top_p,
    top_k: TopK = SamplingParams.top_k,
    min_p: MinP = SamplingParams.min_p,
    repetition_penalty: RepetitionPenalty = SamplingParams.repetition_penalty,
    presence_penalty: PresencePenalty = SamplingParams.presence_penalty,
    frequency_penalty: FrequencyPenalty = SamplingParams.frequency_penalty,
    seed: Seed = SamplingParams.seed,
    stop: Stop = [],  # noqa: B006  typer reads it and copies
    logprobs: Logprobs = SamplingParams.logprobs,
    ignore_eos: IgnoreEos = SamplingParams.ignore_eos,
    device: Device = "cpu",
    dtype: DtypeOption = None,
    rounding: RoundingOption = Rounding.AUTO,
    threads: Threads = None,
    prefill_chunk: PrefillChunk = 512,
    as_json: Json = False,
) -> None:
    """Let a model continue a prompt; print the text as it comes, and the speed on standard error.

    The most likely token is always taken unless --temperature is above 0. A text starts a new document: the start token
    is put before it. Without a tokenizer.json in MODEL the prompt and the output are token ids.
    """
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=tuple(stop),
        logprobs=logprobs,
        ignore_eos=ignore_eos,
    )
    if logprobs is not None and not as_json:
        raise UsageError("--logprobs needs --json")
    given = GivenPrompt(
        text=prompt, file=prompt_file, tokens=prompt_tokens, chat=chat, thinking=thinking, effort=effort
    )
    use_threads(threads)
    model = model_place(model)
    loaded = load(model, device, dtype, rounding)
    tokenizer = _tokenizer(Path(model))
    ready = given.prepare(Path(model), tokenizer)
    if chat and tokenizer is not None and not ignore_eos:
        params = replace(params, stop_ids=tuple(tokenizer.stop_ids))
    events = _stream(loaded, ready.token_ids, params, tokenizer, prefill_chunk)
    if as_json:
        generation = _last(events)
        print(json.dumps(_report(model, generation, params), ensure_ascii=False, allow_nan=False))
    else:
        generation = _show(events, tokenizer, dim=ready.thinking and sys.stdout.isatty())
        print(_summary(generation, drawn=temperature > 0), file=sys.stderr)


def _tokenizer(folder: Path) -> "Tokenizer | None":
    if not (folder / "tokenizer.json").is_file():
        return None
    from pelagos.chat.tokenizer import Tokenizer

    return Tokenizer.from_folder(folder)


def _stream(
    model: "Model", prompt_ids: list[int], params: SamplingParams, tokenizer: "Tokenizer | None", prefill_chunk: int
) -> "Iterator[Token | Generation]":
    """The tokens, then the Generation; while a long prompt is read there is a progress bar. Bad prompts raise here."""
    from pelagos.engine.offline import generate_stream

    decoder = None
    if tokenizer is not None:
        from pelagos.chat.tokenizer import IncrementalDecoder

        decoder = IncrementalDecoder(tokenizer)
    return _behind_bar(generate_stream(model, prompt_ids, params, decoder, prefill_chunk=prefill_chunk))


def _behind_bar(events: "Iterator[Progress | Token | Generation]") -> "Iterator[Token | Generation]":
    from pelagos.engine.offline import Progress

    bar = PatientBar("reading the prompt")
    try:
        for event in events:
            if isinstance(event, Progress):
                bar.show(event.num_read, event.num_prompt_tokens)
            else:
                bar.stop()
                yield event
    finally:
        bar.stop()


def _show(events: "Iterator[Token | Generation]", tokenizer: "Tokenizer | None", *, dim: bool) -> "Generation":
    """Write the text to standard output as it comes, and what comes up to the end of thinking dim if ``dim``. Without a
    tokenizer write the ids with commas."""
    from pelagos.chat.tokenizer import THINK_END
    from pelagos.engine.offline import Generation

    think_end = tokenizer.encode_special(THINK_END) if tokenizer is not None and dim else None
    separator = ""
    print(DIM if dim else "", end="")
    try:
        for event in events:
            if isinstance(event, Generation):
                return event
            print(event.text if tokenizer is not None else f"{separator}{event.sampled.token_id}", end="", flush=True)
            separator = ","
            if event.sampled.token_id == think_end:
                print(PLAIN, end="")
    finally:
        print(PLAIN if dim else "", flush=True)
    raise AssertionError("a stream ends with its Generation")


def _last(events: "Iterator[Token | Generation]") -> "Generation":
    from pelagos.engine.offline import Generation

    *_, generation = events
    assert isinstance(generation, Generation)
    return generation


def _summary(generation: "Generation", *, drawn: bool) -> str:
    timings = generation.timings
    rate = timings.decode_tokens_per_second
    parts = [
        f"{len(generation.tokens)} tokens" + ("" if rate is None else f" at {rate:.4g} tokens/s"),
        f"ended by {generation.finish_reason}",
        f"prompt {timings.num_prefill_tokens} tokens at {timings.prefill_tokens_per_second:.4g} tokens/s",
        *([f"seed {generation.seed}"] if drawn else []),
    ]
    return f"pelagos: {', '.join(parts)}"


def _report(model: str, generation: "Generation", params: SamplingParams) -> dict[str, Any]:
    """The JSON object of --json. ``logprobs`` has one entry per token id, or is null; natural logarithms under the
    model's own distribution."""
    timings = generation.timings
    logprobs = [
        {
            "token_id": token.token_id,
            "logprob": token.logprob,
            "top": [{"token_id": token_id, "logprob": value} for token_id, value in token.top_logprobs],
        }
        for token in generation.tokens
    ]
    return {
        "model": model,
        "text": generation.text,
        "token_ids": generation.token_ids,
        "logprobs": None if params.logprobs is None else logprobs,
        "finish_reason": generation.finish_reason,
        "stop_string": generation.stop_string,
        "prompt_tokens": timings.num_prefill_tokens,
        "timing": {
            "prefill_seconds": timings.prefill_seconds,
            "decode_seconds": timings.decode_seconds,
            "prefill_tokens_per_second": timings.prefill_tokens_per_second,
            "decode_tokens_per_second": timings.decode_tokens_per_second,
        },
        "state_bytes": generation.state_bytes,
        "seed": generation.seed,
    }
