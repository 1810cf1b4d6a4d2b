"""A training run as data: what ``recipes`` return and ``--set`` changes. Nothing else decides how a run goes."""

from collections.abc import Iterator
from dataclasses import dataclass

from pelagos.common.errors import ConfigError
from pelagos.common.fields import check_fields, setting
from pelagos.model.config import ModelConfig
from pelagos.training.data import DataConfig
from pelagos.training.evaluate import EvaluateConfig
from pelagos.training.initialize_recall import recall_problems
from pelagos.training.loss import LossConfig
from pelagos.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A part of the run with one sequence length. Stages follow each other; tokens per step may stay the same."""

    until: float = setting(help="share of all steps at which the stage ends; the last one's is 1", low=0.0, high=1.0)
    sequence_length: int = setting(help="tokens per packed row", low=8, high=1 << 21)
    num_rows: int = setting(help="packed rows per step, of all processes together", low=1, high=1 << 20)
    sparse_from: float = setting(
        1.0, help="share of all steps from which CSA queries see their top rows only; 1: not", low=0.0, high=1.0
    )
    yarn: bool = setting(False, help="YaRN as the model's config has it; false: plain rotation")
    text: float = setting(0.6, help="share of tokens from text and code", low=0.0, high=1.0)
    recall: float = setting(0.25, help="share of tokens from recall tasks", low=0.0, high=1.0)
    lists: float = setting(
        0.0, help="share of tokens from short lists and facts with many questions", low=0.0, high=1.0
    )
    chat: float = setting(0.15, help="share of tokens from chats and tool calls", low=0.0, high=1.0)
    talk: float = setting(
        0.0, help="share of tokens from conversations of some turns, most with thinking", low=0.0, high=1.0
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if abs(sum(self.mixture.values()) - 1.0) > 1e-6:
            names = ", ".join(self.mixture)
            raise ConfigError(f"{names} must add up to 1, got {sum(self.mixture.values()):g}")

    @property
    def mixture(self) -> dict[str, float]:
        groups = ("text", "recall", "lists", "chat", "talk")
        return {name: getattr(self, name) for name in groups}


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """Balance of experts by their selection bias."""

    bias_speed: float = setting(0.001, help="change of a router's bias per step (gamma)", low=0.0, high=1.0)
    fixed_from: float = setting(1.0, help="share of all steps from which biases stay as they are", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class QatConfig:
    """Training in the numbers that the model is served in."""

    start: float = setting(1.0, help="share of all steps from which experts are FP4; 1: never", low=0.0, high=1.0)
    official_rounding: bool = setting(True, help="from then on also round activations, rows and index path")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    """What is done about steps that go wrong."""

    spike_deviations: float | None = setting(
        6.0, help="a loss this many mean deviations above its mean is a spike; None: not watched", low=1.0, high=1e6
    )
    snapshot_steps: int = setting(50, help="steps between snapshots in memory to roll back to", low=1, high=1 << 20)
    rollback_after: int = setting(3, help="bad steps in a row, each skipped, before a roll-back", low=1, high=1000)
    max_rollbacks: int = setting(5, help="roll-backs before the run gives up", low=0, high=1000)
    anticipate_steps: int | None = setting(
        None, help="after a roll-back, steps whose experts are chosen by older weights; None: none", low=1, high=1 << 20
    )
    anticipate_delay: int = setting(4, help="age of those weights, steps", low=0, high=64)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SavingConfig:
    """When state is saved, and how much is kept."""

    every_steps: int = setting(50, help="steps between checkpoints", low=1, high=1 << 30)
    keep: int = setting(2, help="checkpoints kept", low=1, high=1000)
    log_every: int = setting(10, help="steps between lines of metrics", low=1, high=1 << 20)
    evaluate_every: int | None = setting(
        None, help="steps between evaluations, beside that at the end; None: no others", low=1, high=1 << 30
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run."""

    name: str = setting(help="name of the recipe")
    num_steps: int = setting(help="optimizer steps", low=1, high=1 << 30)
    seed: int = setting(0, help="of the weights at the start; data.seed is that of the data", low=0, high=(1 << 31) - 1)
    init_std: float = setting(0.02, help="standard deviation of matrices at the start", low=0.0, high=1.0)
    init: str = setting(
        "plain",
        help="weights at the start; recall: with circuits that look things up, see training/initialize_recall.py",
        choices=("plain", "recall"),
    )
    micro_tokens: int = setting(4096, help="tokens per pass through the model; a step is as many passes as it takes",
                                low=8, high=1 << 30)  # fmt: skip
    recompute: bool = setting(False, help="keep only each layer's input for the backward pass: less memory, more time")
    sharding: str = setting(
        "none",
        help="weights of several processes: none: whole in each; full: divided among them (FSDP2)",
        choices=("none", "full"),
    )
    batch_ramp: float = setting(0.0, help="share of all steps over which a step grows to its size", low=0.0, high=1.0)
    model: ModelConfig = setting(help="the model")
    data: DataConfig = setting(help="the data")
    stages: tuple[StageConfig, ...] = setting(help="lengths and mixes, in order")
    optimizer: OptimizerConfig = setting(help="the optimizer and its schedule")
    loss: LossConfig = setting(LossConfig(), help="the objective")
    balance: BalanceConfig = setting(BalanceConfig(), help="balance of experts")
    qat: QatConfig = setting(QatConfig(), help="low-precision training")
    stability: StabilityConfig = setting(StabilityConfig(), help="spikes and roll-backs")
    saving: SavingConfig = setting(SavingConfig(), help="checkpoints and metrics")
    evaluation: EvaluateConfig | None = setting(None, help="what is measured at the end; None: nothing")

    def __post_init__(self) -> None:
        check_fields(self)
        if problems := list(self._problems()):
            raise ConfigError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        ends = [stage.until for stage in self.stages]
        if not ends or ends != sorted(set(ends)) or ends[-1] != 1.0:
            yield f"until of stages must rise to 1, got {ends}"
        longest = max((stage.sequence_length for stage in self.stages), default=0)
        if longest > self.model.max_positions:
            yield f"sequence_length must be at most max_positions ({self.model.max_positions}), got {longest}"
        if self.model.storage != "float32" or self.model.activation_dtype not in ("float32", "bfloat16"):
            yield "model must have storage float32, and activation_dtype float32 or bfloat16, to be trained"
        if self.saving.evaluate_every is not None and self.evaluation is None:
            yield "evaluation must be set where saving.evaluate_every is"
        if self.sharding == "full" and self.evaluation is not None:
            yield "evaluation must be none with sharding full: evaluate the exported model instead"
        if self.init == "recall":
            yield from recall_problems(self.model)
        if self.model.official_rounding:
            yield "model must have official_rounding off: qat switches it on when its time has come"

    def stage_at(self, step: int) -> StageConfig:
        """The stage of step 0, 1, .. num_steps − 1."""
        return next(stage for stage in self.stages if step < round(stage.until * self.num_steps) or stage.until == 1.0)

    def is_sparse(self, step: int) -> bool:
        return step >= round(self.stage_at(step).sparse_from * self.num_steps)

    def rows_at(self, step: int) -> int:
        """Packed rows of a step: the stage's, fewer during the ramp, at least one."""
        ramp = self.batch_ramp * self.num_steps
        share = min(1.0, (step + 1) / ramp) if ramp else 1.0
        return max(1, round(share * self.stage_at(step).num_rows))
