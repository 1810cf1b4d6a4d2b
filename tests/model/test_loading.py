"""From folders and presets to models: the logits of a packed checkpoint are those of the values it means."""

import copy
from pathlib import Path

import pytest
import torch
from checkpoint_factory import BASE_CONFIG, OFFICIAL_CONFIG, hf_model, packed, write_folder
from hf_oracle import NEAR_TIE, official_tensors, prompt, smallest_gap
from torch import Tensor

from pelagos.common.errors import ResourceError, UsageError
from pelagos.formats.matrix import QuantizedMatrix
from pelagos.model.loading import fill
from pelagos.model.transformer import Model


def _transformers_logits(values: dict[str, Tensor], ids: list[int]) -> Tensor:
    oracle = copy.deepcopy(hf_model())
    with torch.no_grad():
        for name, view in official_tensors(oracle).items():
            view.copy_(values[name])
        logits: Tensor = oracle(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def _prompt_without_near_ties(model: Model) -> list[int]:
    for seed in range(20):
        ids = prompt(203, 97, seed)
        with smallest_gap() as gap:
            model.logits(ids)
        if gap() > NEAR_TIE:
            return ids
    raise AssertionError("no prompt without near-ties")


@pytest.mark.parametrize("base", [False, True])
def test_packed_weights_give_the_logits_of_their_values(base: bool, tmp_path: Path) -> None:
    stored, values = packed(base=base)
    folder = write_folder(tmp_path, BASE_CONFIG if base else OFFICIAL_CONFIG, stored)
    model = Model.load(folder, dtype=torch.float32, official_rounding=False, implementation="reference")
    experts = model.layers[1].ffn.experts
    assert all(isinstance(matrix, QuantizedMatrix) for matrix in (*experts.w1, *experts.w2, *experts.w3))
    ids = _prompt_without_near_ties(model)
    logits, expected = model.logits(ids), _transformers_logits(values, ids)
    assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max()

    with torch.device("meta"):
        plain = Model(model.config)
    fill(plain, lambda spec: values[spec.name])
    assert torch.equal(plain.logits(ids), logits)

    native = Model.load(folder, dtype=torch.float32, official_rounding=False).logits(ids)
    assert (native - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_a_folder_that_transformers_saved(tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path)
    ids = prompt(150, 97, 2)
    model = Model.load(tmp_path)
    with torch.no_grad():
        expected = hf_model()(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    assert model.dtype == torch.float32
    assert (model.logits(ids) - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_config_decides_dtype_and_rounding_unless_told_otherwise(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, OFFICIAL_CONFIG, packed()[0])
    model = Model.load(folder)
    assert (model.dtype, model.config.official_rounding) == (torch.bfloat16, True)
    assert model.logits([1, 2, 3]).dtype == torch.float32
    model = Model.load(folder, dtype=torch.float32, official_rounding=False)
    assert (model.dtype, model.config.official_rounding) == (torch.float32, False)


def test_a_draft_from_packed_weights(tmp_path: Path) -> None:
    model = Model.load(write_folder(tmp_path, OFFICIAL_CONFIG, packed()[0]))
    streams = model.streams([5, 6, 7], model.new_state())
    logits, _ = model.draft(streams, [6, 7, 8], model.new_draft_state())
    assert logits.shape == (3, 97)
    assert torch.isfinite(logits).all()


def test_presets_are_the_same_every_time() -> None:
    assert torch.equal(Model.load("tiny").logits([1, 2, 3]), Model.load("tiny").logits([1, 2, 3]))


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"^model must be a checkpoint folder, owner/name on the hub, or one of .*flash, .*, tiny, got '.*nope'$",
    ):
        Model.load(tmp_path / "nope")
    with pytest.raises(ResourceError, match=r"^random weights for this preset would take 1,084 GiB, at most 1 GiB are"):
        Model.load("flash")
    with pytest.raises(UsageError, match=r"^dtype must be one of float32, bfloat16, float16, got torch\.float64$"):
        Model.load("tiny", dtype=torch.float64)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "token_ids must be a flat list of at least one whole number"),
        ([[1, 2]], "token_ids must be a flat list of at least one whole number"),
        ([1.5], "token_ids must be a flat list of at least one whole number"),
        ([True, False], "token_ids must be a flat list of at least one whole number"),
        ([1, 512], "token_ids[1] must be from 0 to 511, got 512"),
        ([-1], "token_ids[0] must be from 0 to 511, got -1"),
        ([1] * 4097, "the sequence would have 4097 tokens, the model takes at most 4096"),
    ],
)
def test_bad_prompts_leave_the_state_alone(ids: list[int], message: str) -> None:
    model = Model.load("tiny")
    state = model.new_state()
    before = state.num_bytes
    with pytest.raises(UsageError) as caught:
        model.step(ids, state)
    assert str(caught.value) == message
    assert (state.num_tokens, state.num_bytes) == (0, before)


def test_a_model_without_draft_block_says_so(tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path)
    model = Model.load(tmp_path)
    with pytest.raises(UsageError, match="this model has no multi-token-prediction block to draft with"):
        model.draft(torch.zeros(1, 4, 160), [1], model.new_draft_state())
