"""How a request wants its tokens chosen: the fields of a body as SamplingParams."""

from collections.abc import Mapping, Sequence
from typing import Any

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.fields import read_field, show
from pelagos.engine.params import MAX_BIASES, SamplingParams
from pelagos.serving.config import ServingConfig
from pelagos.serving.errors import ApiError

# Fields of a body that have the name and the range of a field of SamplingParams.
DIRECT = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
FLAGS = ("ignore_eos",)
FIELDS = (*DIRECT, *FLAGS, "logit_bias")


def sampling_params(
    body: Mapping[str, Any],
    config: ServingConfig,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    logprobs: int | None = None,
) -> SamplingParams:
    """What the body asks for, the server's defaults where it is silent. ``stop``: only what the engine is to look for.

    Raises ConfigError or ApiError that names the field and its range.
    """
    values: dict[str, Any] = {"temperature": config.default_temperature, "top_p": config.default_top_p}
    for name in (*DIRECT, *FLAGS):
        if name in body:
            values[name] = read_field(SamplingParams, name, body[name], shown_as=name)
    if "logit_bias" in body:
        values["logit_bias"] = _logit_bias(body["logit_bias"], tokenizer.vocab_size)
    return SamplingParams(
        **values,
        max_tokens=max_tokens,
        stop=tuple(stop),
        stop_ids=() if values.get("ignore_eos") else tuple(sorted(tokenizer.stop_ids)),
        logprobs=logprobs,
    )


def _logit_bias(value: object, vocab_size: int) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ApiError(400, f"logit_bias must be an object of at most {MAX_BIASES} entries", param="logit_bias")
    pairs = []
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
            raise ApiError(
                400,
                f"logit_bias must have token ids from 0 to {vocab_size - 1} as keys, got {show(key)}",
                param="logit_bias",
            )
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ApiError(
                400, f"logit_bias.{key} must be a number from -100 to 100, got {show(bias)}", param="logit_bias"
            )
        pairs.append((int(key), float(bias)))
    return tuple(sorted(pairs))
