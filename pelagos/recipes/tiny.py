"""``tiny``: every part of the model and of its training, in under a minute on two cores. It learns next to nothing."""

from pelagos.model.config import ModelConfig, RopeConfig, YarnConfig, csa_layer, hca_layer, window_layer
from pelagos.training.config import BalanceConfig, QatConfig, SavingConfig, StageConfig, TrainConfig
from pelagos.training.data import DataConfig
from pelagos.training.optimizer import OptimizerConfig

_WINDOW = 16


def tiny() -> TrainConfig:
    model = ModelConfig(
        vocab_size=512,
        hidden_size=64,
        num_heads=4,
        head_dim=32,
        rope_dim=8,
        query_rank=32,
        num_output_groups=2,
        output_rank=32,
        num_index_heads=2,
        index_head_dim=16,
        index_topk=8,
        num_experts=8,
        num_experts_per_token=2,
        expert_dim=32,
        routed_scaling_factor=1.5,
        swiglu_limit=10.0,
        rope=RopeConfig(theta=10_000.0),
        compressed_rope=RopeConfig(theta=160_000.0, yarn=YarnConfig(factor=16.0, original_positions=256)),
        max_positions=4096,
        bos_id=448,
        eos_ids=(449,),
        layers=(
            window_layer(window=_WINDOW, router="hash"),
            csa_layer(window=_WINDOW),
            hca_layer(window=_WINDOW, ratio=8),
            csa_layer(window=_WINDOW),
        ),
        mtp_layers=(window_layer(window=_WINDOW),),
        activation_dtype="float32",
        storage="float32",
    )
    return TrainConfig(
        name="tiny",
        num_steps=80,
        model=model,
        data=DataConfig(folder="sample"),
        stages=(
            StageConfig(until=0.6, sequence_length=128, num_rows=8),
            StageConfig(until=0.85, sequence_length=256, num_rows=4, sparse_from=0.7),
            StageConfig(until=1.0, sequence_length=512, num_rows=2, sparse_from=0.7, yarn=True),
        ),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=5, weight_decay=0.0),
        balance=BalanceConfig(bias_speed=0.01),
        qat=QatConfig(start=0.9),
        saving=SavingConfig(every_steps=20, log_every=2),
    )
