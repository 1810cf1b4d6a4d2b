"""``small``: one GPU and half an hour: 363M parameters, 107M active, 150M tokens. It was not run so far: no GPU was at
hand."""

from pelagos.model.config import LayerConfig, ModelConfig, RopeConfig, YarnConfig, csa_layer, hca_layer, window_layer
from pelagos.training.config import BalanceConfig, SavingConfig, StageConfig, TrainConfig
from pelagos.training.data import DataConfig
from pelagos.training.evaluate import EvaluateConfig
from pelagos.training.optimizer import OptimizerConfig

_WINDOW = 128


def _layers() -> tuple[LayerConfig, ...]:
    window = window_layer(window=_WINDOW, router="hash")
    hashed, csa, hca = csa_layer(window=_WINDOW, router="hash"), csa_layer(window=_WINDOW), hca_layer(window=_WINDOW)
    return (window, window, hashed, hca, *(csa, hca) * 4, csa)


def small() -> TrainConfig:
    model = ModelConfig(
        vocab_size=8192,
        hidden_size=768,
        num_heads=12,
        head_dim=128,
        rope_dim=32,
        query_rank=384,
        num_output_groups=4,
        output_rank=256,
        num_index_heads=16,
        index_head_dim=64,
        index_topk=128,
        num_experts=24,
        num_experts_per_token=4,
        expert_dim=384,
        routed_scaling_factor=1.5,
        swiglu_limit=10.0,
        rope=RopeConfig(theta=10_000.0),
        compressed_rope=RopeConfig(theta=160_000.0, yarn=YarnConfig(factor=16.0, original_positions=16_384)),
        max_positions=1 << 20,
        bos_id=8128,
        eos_ids=(8129,),
        layers=_layers(),
        mtp_layers=(window_layer(window=_WINDOW),),
        activation_dtype="bfloat16",
        storage="float32",
    )
    return TrainConfig(
        name="small",
        num_steps=585,
        micro_tokens=32_768,
        recompute=True,
        model=model,
        data=DataConfig(folder="data/small"),
        stages=(
            StageConfig(until=0.5, sequence_length=1024, num_rows=256, text=0.6, recall=0.25, chat=0.15),
            StageConfig(
                until=0.85, sequence_length=4096, num_rows=64, sparse_from=0.6, text=0.5, recall=0.35, chat=0.15
            ),
            StageConfig(
                until=1.0, sequence_length=16_384, num_rows=16, sparse_from=0.6, text=0.4, recall=0.4, chat=0.2
            ),
        ),
        optimizer=OptimizerConfig(peak_lr=2e-3, warmup_steps=60),
        balance=BalanceConfig(bias_speed=0.002),
        saving=SavingConfig(every_steps=50, log_every=5),
        evaluation=EvaluateConfig(),
    )
