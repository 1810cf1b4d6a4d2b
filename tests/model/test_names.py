import pytest
from checkpoint_factory import hf_model, main_tensors, module_tensors
from safetensors import safe_open

from pelagos.model.names import Source, find_spellings, is_optional, scale_names, source_of


@pytest.fixture(scope="module")
def saved_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What transformers' save_pretrained really writes."""
    folder = tmp_path_factory.mktemp("saved")
    hf_model().save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_every_name_of_every_spelling_is_known(saved_names: set[str]) -> None:
    official = main_tensors().keys()
    assert {source_of(name, "official").name for name in official} == set(official)
    assert {source_of(name, "transformers").name for name in official} == set(module_tensors())
    assert {source_of(name, "save_pretrained").name for name in official} == saved_names


def test_spellings_are_told_apart(saved_names: set[str]) -> None:
    assert list(find_spellings(main_tensors())) == ["official"]
    assert list(find_spellings(module_tensors())) == ["transformers"]
    assert list(find_spellings(saved_names)) == ["save_pretrained"]
    assert find_spellings(["mtp.0.norm.weight", "model.embed_tokens.weight", "head.weight", "junk"]) == {}


def test_an_example_shows_each_spelling() -> None:
    found = find_spellings(["head.weight", "embed.weight", "norm.weight", "lm_head.weight"])
    assert found == {"official": "embed.weight", "transformers": "lm_head.weight"}


def test_experts_are_parts_of_fused_tensors() -> None:
    fused = "model.layers.12.mlp.experts.gate_up_proj"
    assert source_of("layers.12.ffn.experts.7.w1.weight", "transformers") == Source(fused, 7, 0, 2)
    assert source_of("layers.12.ffn.experts.7.w3.weight", "transformers") == Source(fused, 7, 1, 2)
    down = source_of("layers.12.ffn.experts.7.w2.weight", "transformers")
    assert down == Source("model.layers.12.mlp.experts.down_proj", 7, 0, 1)


@pytest.mark.parametrize("spelling", ["official", "transformers", "save_pretrained"])
def test_draft_blocks_have_official_names_everywhere(spelling: str) -> None:
    assert source_of("mtp.0.attn.kv_norm.weight", spelling) == Source("mtp.0.attn.kv_norm.weight")


def test_scales_may_have_two_names_and_only_weights_have_them() -> None:
    assert scale_names("layers.0.attn.wq_a.weight") == (
        "layers.0.attn.wq_a.scale",
        "layers.0.attn.wq_a.weight_scale_inv",
    )
    assert scale_names("layers.0.hc_attn_scale") == ()


@pytest.mark.parametrize(
    ("name", "optional"),
    [
        ("mtp.0.emb.tok_emb.weight", True),
        ("mtp.0.head.weight", True),
        ("mtp.2.markov_head.embed.weight", True),
        ("model.mtp.1.anything", True),
        ("model.layers.1.self_attn.compressor.rotary_emb.main_inv_freq", True),
        ("layers.0.mtp.weight", False),
        ("model.layers.1.rotary_emb.weight", False),
        ("mtp", False),
        ("layers.99.attn.wq_a.weight", False),
    ],
)
def test_what_may_be_there_unasked(name: str, optional: bool) -> None:
    assert is_optional(name) is optional


def test_unknown_names_are_a_mistake_of_the_program() -> None:
    with pytest.raises(AssertionError, match="not an official tensor name"):
        source_of("something.weight", "transformers")
