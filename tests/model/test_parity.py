"""Logits against transformers' DeepseekV4ForCausalLM in float32, same weights: one shot, cached, batched.

transformers breaks ties of index scores by chance, and a near-tie flips with rounding. So a draw in which rank k and
k+1 of an index (or of a router) lie close together is drawn again; that is checked, not assumed.
"""

import random

import pytest
import torch
from hf_oracle import (
    CSA,
    HCA,
    NEAR_TIE,
    SWA,
    official_tensors,
    oracle_config,
    oracle_model,
    prompt,
    random_config,
    same_model,
    smallest_gap,
)
from naive import Naive
from torch import Tensor
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, DynamicCache

from pelagos.model.transformer import Model

TOLERANCE = 2e-5  # of the largest logit
LENGTHS = [1, 2, 3, 4, 5, 127, 128, 129, 255, 256, 257, 511, 512, 513, 600, 700]


def _oracle_logits(oracle: DeepseekV4ForCausalLM, batch: list[list[int]], chunks: list[int] | None = None) -> Tensor:
    ids = torch.tensor(batch)
    with torch.no_grad():
        if chunks is None:
            return oracle(input_ids=ids, use_cache=False).logits
        cache = DynamicCache(config=oracle.config)
        pieces = ids.split(chunks, dim=1)
        return torch.cat([oracle(input_ids=p, cache=cache, use_cache=True).logits for p in pieces], 1)


def _step_logits(model: Model, ids: list[int], chunks: list[int]) -> Tensor:
    state, at, parts = model.new_state(), 0, []
    for chunk in chunks:
        parts.append(model.step(ids[at : at + chunk], state))
        at += chunk
    assert at == len(ids) == state.num_tokens
    return torch.cat(parts)


def _error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _draw(
    config: DeepseekV4Config, seed: int, length: int, **kwargs: float
) -> tuple[DeepseekV4ForCausalLM, Model, list[int]]:
    """Oracle, our model and a prompt without near-ties."""
    for attempt in range(20):
        oracle = oracle_model(config, seed + 1000 * attempt, **kwargs)
        model = same_model(oracle)
        ids = prompt(length, config.vocab_size, seed + attempt)
        with smallest_gap() as gap:
            model.logits(ids)
        if gap() > NEAR_TIE:
            return oracle, model, ids
    raise AssertionError("no draw without near-ties")


def _random_chunks(length: int, seed: int) -> list[int]:
    draw, chunks = random.Random(seed), []
    while sum(chunks) < length:
        chunks.append(min(draw.choice([1, 1, 2, 3, 5, 7, 37, 128, 130, 200]), length - sum(chunks)))
    return chunks


@pytest.mark.parametrize("seed", range(24))
def test_random_configurations(seed: int) -> None:
    config = random_config(seed)
    longest = LENGTHS[-1 - seed % 6]
    oracle, model, ids = _draw(config, seed, longest, scale=4.0 if seed % 4 == 3 else 1.0)
    for length in {longest, LENGTHS[seed % len(LENGTHS)], LENGTHS[(seed * 7 + 3) % 8]}:
        part = ids[:length]
        assert _error(model.logits(part), _oracle_logits(oracle, [part])[0]) <= TOLERANCE
    length = LENGTHS[(5 * seed + 2) % 12]
    chunks = _random_chunks(length, seed)
    ours = _step_logits(model, ids[:length], chunks)
    assert _error(ours, _oracle_logits(oracle, [ids[:length]], chunks)[0]) <= TOLERANCE
    assert _error(ours, _oracle_logits(oracle, [ids[:length]])[0]) <= TOLERANCE


@pytest.mark.parametrize("seed", range(3))
def test_badly_conditioned_weights_lose_no_more_than_the_oracle(seed: int) -> None:
    """With tensors 8 times too large or small, rounding grows through the layers; float64 is then the judge."""
    config = random_config(4 * seed + 3)
    oracle, model, ids = _draw(config, seed, 257, scale=8.0)
    exact = Naive(model.config, official_tensors(oracle)).logits(ids)
    theirs = _error(_oracle_logits(oracle, [ids])[0], exact)
    assert _error(model.logits(ids), exact) <= 3 * theirs + 1e-6


def test_batch_of_four() -> None:
    config = oracle_config()
    oracle, model, ids = _draw(config, 3, 130)
    batch = [ids, *(prompt(130, config.vocab_size, 50 + i) for i in range(3))]
    ours = model.step_batch(batch, [model.new_state() for _ in batch])
    theirs = _oracle_logits(oracle, batch)
    for mine, other in zip(ours, theirs, strict=True):
        assert _error(mine, other) <= TOLERANCE


def test_one_shot_chunks_and_single_steps() -> None:
    """The three ways of either side agree: 301 tokens, not a multiple of 4 or 128."""
    oracle, model, ids = _draw(oracle_config(), 11, 301)
    chunks = [7, 1, 130, 2, 3, 121, 37]
    whole = _oracle_logits(oracle, [ids])[0]
    assert 1.0 < whole.abs().max() < 20.0
    for ours in (model.logits(ids), _step_logits(model, ids, chunks), _step_logits(model, ids, [1] * 301)):
        assert (ours - whole).abs().max() <= 1e-5
        assert (ours - _oracle_logits(oracle, [ids], chunks)[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("kinds", [[SWA], [CSA], [HCA]])
def test_one_kind_alone(kinds: list[str]) -> None:
    config = oracle_config(layer_types=kinds, mlp_layer_types=["moe"])
    oracle, model, ids = _draw(config, 5, 301)
    assert _error(model.logits(ids), _oracle_logits(oracle, [ids])[0]) <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    ["tid2eid", "gate.bias", "attn_sink", "compressor.ape", "indexer.compressor.ape", "indexer.weights_proj",
     "hc_attn.scale", "hc_ffn.base", "hc_head.base", "kv_norm", "q_norm"],
)  # fmt: skip
def test_every_tensor_matters(name: str) -> None:
    """Perturbing any one kind of tensor changes the logits, so a tensor that is read but not used cannot hide."""
    model = same_model(oracle_model(oracle_config(), 11))
    ids = prompt(200, 97, 0)
    before = model.logits(ids)
    changed = 0
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in key:
            tensor.data.copy_(tensor.roll(1, 0) if tensor.dim() > 1 or len(tensor) > 1 else tensor + 1)
            changed += 1
    assert changed
    assert (model.logits(ids) - before).abs().max() > 0.01


@pytest.mark.parametrize(
    "changes",
    [{"swiglu_limit": 1e6}, {"index_topk": 8}, {"sliding_window": 15}, {"routed_scaling_factor": 1.4},
     {"rope_theta": 2e4}, {"compress_rope_theta": 1e5}, {"rope_parameters": {"rope_type": "default"}},
     {"hc_sinkhorn_iters": 1}, {"num_experts_per_tok": 2}],
)  # fmt: skip
def test_every_constant_matters(changes: dict[str, object]) -> None:
    """Perturbing any one constant changes the logits by far more than rounding."""
    oracle = oracle_model(oracle_config(), 11)
    ids = prompt(290, 97, 0)
    other = oracle_model(oracle_config(**changes), 11)
    state = {k: v[:, : changes["num_experts_per_tok"]] if "tid2eid" in k and "num_experts_per_tok" in changes else v
             for k, v in oracle.state_dict().items()}  # fmt: skip
    other.load_state_dict(state)
    assert (same_model(oracle).logits(ids) - same_model(other).logits(ids)).abs().max() > 0.01


def test_logits_of_a_prefix_do_not_depend_on_later_tokens() -> None:
    model = same_model(oracle_model(oracle_config(), 11))
    ids = prompt(260, 97, 0)
    assert torch.equal(model.logits(ids)[:131], model.logits(ids[:131]))
