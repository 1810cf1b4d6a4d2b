"""What a DeepSeek-V4 model is made of, as data. One ``LayerConfig`` per layer says what the layer keeps and sees;
no module asks which model it is part of.

Reading and writing config.json is in config_json.py; ready-made configs are in presets.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pelagos.common.errors import ConfigError
from pelagos.common.fields import check_fields, setting

PAGE_TOKENS = 128  # a page closes every compression window, so ratios must divide it

LayerKind = Literal["window", "csa", "hca"]
Storage = Literal["official", "base", "bfloat16", "float32"]

# Fields of LayerConfig that describe V4's successors too. The values that this code computes; others are refused.
_COMPUTED = {
    "gate": ("softmax",),
    "position_bias": (True,),
    "rows_from": (None,),
    "index": ("none", "own"),
    "index_rows_from": ("input",),
    "candidate_blocks": (None,),
    "query_head_norm": (True,),
    "stream_order": ("own",),
    "window_format": ("fp8_64",),
    "row_format": ("fp8_64",),
    "index_format": ("fp4_32",),
}


@dataclass(frozen=True, kw_only=True)
class YarnConfig:
    """YaRN context extension of one rotation table."""

    factor: float = setting(help="context extension factor", low=1.0, high=1024.0)
    original_positions: int = setting(help="trained length before extension, tokens", low=1, high=1 << 24)
    beta_fast: float = setting(32.0, help="rotations over the trained length above which nothing changes", low=1e-3)
    beta_slow: float = setting(1.0, help="rotations below which the angle is divided by factor", low=1e-3)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.beta_fast < self.beta_slow:
            raise ConfigError(f"beta_fast must be at least beta_slow ({self.beta_slow:g}), got {self.beta_fast:g}")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """One rotation table."""

    theta: float = setting(help="base of the rotation angles", low=1.0 + 1e-6, high=1e12)
    yarn: YarnConfig | None = setting(None, help="YaRN; None: plain rotation")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """What one layer keeps and sees. Window-only layers have ratio None."""

    window: int = setting(help="tokens a query sees directly, its own included (n_win)", low=1, high=65536)
    ratio: int | None = setting(None, help="tokens per compressed row (m); None: window only", low=2, high=PAGE_TOKENS)
    overlap: bool = setting(False, help="a compressed row also pools the window before its own")
    gate: str = setting("softmax", help="how a compressed row weighs its tokens")
    position_bias: bool = setting(True, help="the gate has a bias per place in its window (ape)")
    rotation: Literal["main", "compressed"] = setting(
        "main", help="rotation table of the layer", choices=("main", "compressed")
    )
    rows_from: int | None = setting(None, help="layer whose compressed rows are read; None: its own")
    index: str = setting("none", help="own: a lightning indexer chooses index_topk rows; none: all rows are seen")
    index_rows_from: str = setting("input", help="what index rows are compressed from")
    candidate_blocks: int | None = setting(None, help="blocks of rows the indexer is limited to; None: no limit")
    query_head_norm: bool = setting(True, help="each query head is normalised")
    stream_order: str = setting("own", help="own: a sub-block uses its own mHC collapse weights")
    window_format: str = setting("fp8_64", help="format of window rows with official rounding")
    row_format: str = setting("fp8_64", help="format of compressed rows with official rounding")
    index_format: str = setting("fp4_32", help="format of index rows and index queries with official rounding")
    router: Literal["learned", "hash"] = setting(
        "learned", help="hash: experts come from a table over token ids", choices=("learned", "hash")
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name, computed in _COMPUTED.items():
            value = getattr(self, name)
            if value not in computed:
                raise ConfigError(f"{name} must be {' or '.join(map(repr, computed))} in this version, got {value!r}")
        if self.ratio is None and (self.overlap or self.index != "none"):
            raise ConfigError("ratio must be set where overlap or index is")
        if self.ratio is not None and PAGE_TOKENS % self.ratio:
            raise ConfigError(f"ratio must divide {PAGE_TOKENS}, got {self.ratio}")

    @property
    def kind(self) -> LayerKind:
        if self.ratio is None:
            return "window"
        return "csa" if self.index == "own" else "hca"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole model. The comment behind a field is its symbol in the paper."""

    vocab_size: int = setting(help="tokens in the vocabulary", low=2, high=1 << 22)  # V
    hidden_size: int = setting(help="width of one residual stream", low=1, high=1 << 17)  # d
    num_heads: int = setting(help="query heads; all share one key-value row", low=1, high=4096)  # n_h
    head_dim: int = setting(help="size of a head and of a row", low=2, high=8192)  # c
    rope_dim: int = setting(help="rotated dims at the end of a head", low=2, high=8192)
    query_rank: int = setting(help="rank of the query projection (q_lora_rank)", low=1, high=1 << 16)  # d_c
    num_output_groups: int = setting(help="head groups of the output projection (o_groups)", low=1, high=4096)  # g
    output_rank: int = setting(help="width of a group before the last projection (o_lora_rank)", low=1, high=1 << 16)
    num_index_heads: int = setting(help="heads of the lightning indexer", low=1, high=4096)  # n_h^I
    index_head_dim: int = setting(help="size of an indexer head and of an index row", low=2, high=8192)  # c^I
    index_topk: int = setting(help="compressed rows a CSA query keeps", low=1, high=1 << 20)  # k
    num_experts: int = setting(help="routed experts per layer", low=1, high=65536)
    num_experts_per_token: int = setting(help="routed experts a token uses", low=1, high=1024)
    expert_dim: int = setting(help="inner width of an expert", low=1, high=1 << 17)
    routed_scaling_factor: float = setting(help="factor on the routed experts' weights", low=0.0, high=1e4)
    swiglu_limit: float | None = setting(help="clamp of gate and up; None: no clamp", low=1e-6, high=1e6)
    num_streams: int = setting(4, help="residual streams (hc_mult)", low=1, high=16)  # n_hc
    sinkhorn_iterations: int = setting(20, help="Sinkhorn iterations (hc_sinkhorn_iters)", low=1, high=1000)  # t_max
    hc_eps: float = setting(1e-6, help="floor of the mHC normalisations", low=0.0, high=1.0)
    norm_eps: float = setting(1e-6, help="floor inside every RMSNorm", low=0.0, high=1.0)
    rope: RopeConfig = setting(help="rotation of window-only layers")
    compressed_rope: RopeConfig = setting(help="rotation of layers with compressed rows")
    max_positions: int = setting(1 << 20, help="longest sequence, tokens", low=1, high=1 << 24)
    bos_id: int | None = setting(0, help="token that starts a sequence", low=0)
    eos_ids: tuple[int, ...] = setting((1,), help="tokens that end a generation")
    layers: tuple[LayerConfig, ...] = setting(help="the main layers, in order")
    mtp_layers: tuple[LayerConfig, ...] = setting((), help="multi-token-prediction blocks, in order")
    num_dspark_blocks: int = setting(0, help="DSpark draft blocks in the checkpoint (not computed)", low=0, high=16)
    dspark_markov_rank: int | None = setting(None, help="rank of DSpark's token table", low=1, high=1 << 16)
    activation_dtype: str = setting(
        "bfloat16", help="dtype between operations", choices=("float32", "bfloat16", "float16")
    )
    storage: Storage = setting(
        "bfloat16",
        help="official: FP4 experts and FP8 dense; base: FP8 both, float32 scales",
        choices=("official", "base", "bfloat16", "float32"),
    )
    official_rounding: bool = setting(
        False, help="round activations, rows and index path as the served model does (FP8, FP8, Hadamard and FP4)"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if problems := [*self._shape_problems(), *self._rotation_problems(), *self._id_problems()]:
            raise ConfigError("; ".join(problems))

    def _shape_problems(self) -> Iterator[str]:
        if not self.layers:
            yield "layers must list at least one layer"
        if self.num_heads % self.num_output_groups:
            yield f"num_output_groups must divide num_heads ({self.num_heads}), got {self.num_output_groups}"
        if self.num_experts_per_token > self.num_experts:
            limit = f"num_experts ({self.num_experts})"
            yield f"num_experts_per_token must be at most {limit}, got {self.num_experts_per_token}"
        if self.num_dspark_blocks and (self.dspark_markov_rank is None or self.mtp_layers):
            yield "num_dspark_blocks needs dspark_markov_rank and excludes mtp_layers"
        if any(layer.kind != "window" or layer.router != "learned" for layer in self.mtp_layers):
            yield "mtp_layers must be window layers with a learned router"

    def _rotation_problems(self) -> Iterator[str]:
        limit = self.head_dim
        if any(layer.kind == "csa" for layer in self.layers):
            limit = min(limit, self.index_head_dim)
        if self.rope_dim % 2 or self.rope_dim > limit:
            yield f"rope_dim must be even and at most {limit} (head_dim, index_head_dim), got {self.rope_dim}"
        if self.official_rounding and self.index_head_dim & (self.index_head_dim - 1):
            yield f"index_head_dim must be a power of two with official_rounding, got {self.index_head_dim}"

    def _id_problems(self) -> Iterator[str]:
        named = [("bos_id", self.bos_id), *(("eos_ids", token) for token in self.eos_ids)]
        for name, token in named:
            if token is not None and not (isinstance(token, int) and 0 <= token < self.vocab_size):
                yield f"{name} must be from 0 to {self.vocab_size - 1}, got {token!r}"

    def rope_of(self, layer: LayerConfig) -> RopeConfig:
        return self.compressed_rope if layer.rotation == "compressed" else self.rope


def window_layer(*, window: int, router: Literal["learned", "hash"] = "learned") -> LayerConfig:
    """A layer that sees its window only; rotation without YaRN."""
    return LayerConfig(window=window, router=router)


def csa_layer(*, window: int, ratio: int = 4, router: Literal["learned", "hash"] = "learned") -> LayerConfig:
    """Compressed sparse attention: overlapping rows of ``ratio`` tokens, of which an indexer chooses."""
    return LayerConfig(window=window, ratio=ratio, overlap=True, index="own", rotation="compressed", router=router)


def hca_layer(*, window: int, ratio: int = 128, router: Literal["learned", "hash"] = "learned") -> LayerConfig:
    """Heavily compressed attention: rows of ``ratio`` tokens, all of them seen."""
    return LayerConfig(window=window, ratio=ratio, rotation="compressed", router=router)
