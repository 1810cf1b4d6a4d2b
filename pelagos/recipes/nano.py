"""``nano``: the model that ships, trained on two CPU cores: recall over long texts, tool calls, documentation prose.

16.4M parameters, 6.1M active. Lengths go 256, 1K, 4K, 16K; YaRN takes 4K to 64K, as it takes the released models from
64K to 1M. The indexer learns from the first step, beside dense attention; top-k is switched on at step 888. Behind
pre-training come conversations of some turns, with thinking, at 1K, 4K and 16K again.
"""

from pelagos.model.config import ModelConfig, RopeConfig, YarnConfig, csa_layer, hca_layer, window_layer
from pelagos.training.config import BalanceConfig, QatConfig, SavingConfig, StageConfig, TrainConfig
from pelagos.training.data import DataConfig
from pelagos.training.evaluate import EvaluateConfig
from pelagos.training.optimizer import OptimizerConfig

_WINDOW = 64
_STEPS = 1548
_FIRST = 1184  # steps of pre-training; those behind teach conversations


def _at(step: float) -> float:
    return step / _STEPS


def _stages() -> tuple[StageConfig, ...]:
    return (
        StageConfig(until=_at(148), sequence_length=256, num_rows=16, text=0.3, lists=0.7, recall=0.0, chat=0.0),
        StageConfig(until=_at(296), sequence_length=256, num_rows=16, text=0.3, lists=0.3, recall=0.3, chat=0.1),
        StageConfig(
            until=_at(1006), sequence_length=1024, num_rows=8, sparse_from=_at(888),
            text=0.15, lists=0.2, recall=0.3, chat=0.35,
        ),
        StageConfig(
            until=_at(1148), sequence_length=4096, num_rows=2, sparse_from=_at(888),
            text=0.15, lists=0.25, recall=0.3, chat=0.3,
        ),
        StageConfig(
            until=_at(_FIRST), sequence_length=16_384, num_rows=1, sparse_from=_at(888), yarn=True,
            text=0.1, lists=0.1, recall=0.5, chat=0.3,
        ),
        # Several turns, thinking, what it cannot do. Then long texts again, so that they are not forgotten.
        StageConfig(
            until=_at(1424), sequence_length=1024, num_rows=8, sparse_from=_at(888), yarn=True,
            text=0.1, lists=0.1, recall=0.2, chat=0.2, talk=0.4,
        ),
        StageConfig(
            until=_at(1524), sequence_length=4096, num_rows=2, sparse_from=_at(888), yarn=True,
            text=0.1, lists=0.1, recall=0.4, chat=0.2, talk=0.2,
        ),
        StageConfig(
            until=1.0, sequence_length=16_384, num_rows=1, sparse_from=_at(888), yarn=True,
            text=0.1, lists=0.1, recall=0.5, chat=0.15, talk=0.15,
        ),
    )  # fmt: skip


def nano() -> TrainConfig:
    model = ModelConfig(
        vocab_size=4096,
        hidden_size=256,
        num_heads=8,
        head_dim=64,
        rope_dim=16,
        query_rank=128,
        num_output_groups=2,
        output_rank=128,
        num_index_heads=4,
        index_head_dim=32,
        index_topk=64,  # 32 rows hold 0.88 of what queries attend to at length 1,024, 64 hold 0.95
        num_experts=16,
        num_experts_per_token=2,
        expert_dim=128,
        routed_scaling_factor=1.5,
        swiglu_limit=10.0,
        rope=RopeConfig(theta=10_000.0),
        compressed_rope=RopeConfig(theta=160_000.0, yarn=YarnConfig(factor=16.0, original_positions=4096)),
        max_positions=1 << 20,
        bos_id=4032,
        eos_ids=(4033,),
        layers=(
            window_layer(window=_WINDOW, router="hash"),
            csa_layer(window=_WINDOW),
            hca_layer(window=_WINDOW, ratio=32),
            csa_layer(window=_WINDOW),
            hca_layer(window=_WINDOW, ratio=32),
            csa_layer(window=_WINDOW),
        ),
        mtp_layers=(window_layer(window=_WINDOW),),
        activation_dtype="float32",
        storage="float32",
    )
    return TrainConfig(
        name="nano",
        num_steps=_STEPS,
        init="recall",
        model=model,
        data=DataConfig(folder="data/nano"),
        stages=_stages(),
        # Tables learn slowly, by what occurs alone: else the words of tasks are learned by heart, and others lost.
        optimizer=OptimizerConfig(
            peak_lr=5e-3,
            warmup_steps=20,
            decay_start_share=_at(0.65 * _FIRST),
            decay_end_share=_at(0.9 * _FIRST),
            newton_schulz_steps=(4, 1),
            embed_lr_mult=0.2,
            head_lr_mult=0.2,
            table_eps=1e-4,
        ),
        balance=BalanceConfig(bias_speed=0.01),
        qat=QatConfig(start=_at(0.9 * _FIRST)),
        saving=SavingConfig(every_steps=25, log_every=5),
        evaluation=EvaluateConfig(),
    )
