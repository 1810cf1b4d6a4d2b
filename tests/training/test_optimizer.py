"""The optimizer of a whole tiny model: against torch's AdamW, against matrices stepped apart, and against itself."""

import dataclasses
import math
import threading
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from pelagos.common.errors import CheckpointError, ConfigError, UsageError
from pelagos.model.presets import preset
from pelagos.model.transformer import Model
from pelagos.training import optimizer as optimizer_module
from pelagos.training.muon import apply_update, look_ahead, scaled_direction
from pelagos.training.optimizer import Optimizer, OptimizerConfig, Ranks, learning_rate
from pelagos.training.parameter_rules import pieces

CONFIG = OptimizerConfig(peak_lr=0.01, warmup_steps=10)
TINY = preset("tiny")
TINY = dataclasses.replace(TINY, layers=TINY.layers[:3], num_experts=3)


def new_model(seed: int = 0) -> Model:
    model = Model(TINY)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def give_gradients(model: Model, seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for parameter in model.parameters():
        parameter.grad = 0.01 * torch.randn(parameter.shape, generator=generator)


def train(model: Model, optimizer: Optimizer, seeds: range) -> None:
    for seed in seeds:
        give_gradients(model, seed)
        optimizer.clip(1.0)
        optimizer.step(0.01)
        optimizer.zero_grad()


def weights_of(model: Model) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# --- config and schedule ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peak_lr": -1e-9}, "peak_lr must be a number from 0 to 10"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number of at least 0"),
        ({"adam_beta2": 1.0}, "adam_beta2 must be a number from 0 to"),
        ({"adam_eps": 0.0}, "adam_eps must be a number from"),
        ({"clip_norm": 0.0}, "clip_norm must be a number of at least"),
        ({"newton_schulz_steps": (8,)}, "newton_schulz_steps must be two whole numbers"),
        ({"newton_schulz_steps": (8, 101)}, "newton_schulz_steps must be two whole numbers from 0 to 100"),
        ({"newton_schulz_steps": (0, 0)}, "not both 0"),
        ({"newton_schulz_steps": (8, True)}, "newton_schulz_steps must be two whole numbers"),
        ({"newton_schulz_dtype": "float16"}, "newton_schulz_dtype must be one of"),
        ({"decay_start_share": 0.95}, r"decay_start_share must be at most decay_end_share \(0.9\), got 0.95"),
    ],
)
def test_config_is_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_config_takes_the_ends_of_its_ranges() -> None:
    dataclasses.replace(CONFIG, peak_lr=0, warmup_steps=0, decay_start_share=1.0, decay_end_share=1.0, clip_norm=None)
    dataclasses.replace(CONFIG, newton_schulz_steps=(0, 100), decay_start_share=0, decay_end_share=0, end_lr_share=1)


def test_schedule_at_its_corners() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, 1000, CONFIG)

    assert rate(0) == pytest.approx(0.001)  # a tenth of the peak: the first of ten warm-up steps
    assert rate(4) == pytest.approx(0.005)
    assert rate(9) == rate(10) == rate(500) == rate(650) == 0.01
    assert rate(651) < 0.01
    assert rate(775) == pytest.approx(0.0055)  # half-way between 0.01 and 0.001
    assert rate(712) - rate(713) < rate(774) - rate(775)  # a cosine is steepest in the middle
    assert rate(900) == rate(999) == pytest.approx(0.001)
    rates = [rate(step) for step in range(650, 901)]
    assert rates == sorted(rates, reverse=True)


def test_schedules_without_a_part() -> None:
    assert learning_rate(0, 10, dataclasses.replace(CONFIG, warmup_steps=0)) == 0.01
    jump = dataclasses.replace(CONFIG, warmup_steps=0, decay_start_share=0.5, decay_end_share=0.5)
    assert [learning_rate(step, 4, jump) for step in range(4)] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    never = dataclasses.replace(CONFIG, warmup_steps=0, decay_start_share=1.0, decay_end_share=1.0)
    assert learning_rate(9, 10, never) == 0.01
    only_warmup = dataclasses.replace(CONFIG, warmup_steps=1000)  # longer than the run: the two factors multiply
    assert learning_rate(9, 10, only_warmup) == pytest.approx(0.01 * 0.01 * 0.1)


# --- AdamW ---


def test_adamw_is_that_of_torch() -> None:
    config = dataclasses.replace(CONFIG, muon=False, embed_lr_mult=3.0, head_lr_mult=0.5, table_eps=1e-3, decay_1d=0.02)
    rates, tables = {"embed.weight": 0.03, "head.weight": 0.005}, ("embed.weight", "head.weight")
    model, twin = new_model(), new_model()
    optimizer = Optimizer(model, config)
    groups = [
        {
            "params": [twin.get_parameter(name)],
            "weight_decay": rule.decay,
            "lr": rates.get(name, 0.01),
            "eps": 1e-3 if name in tables else 1e-20,
        }
        for name, rule in optimizer.treatments.items()
    ]
    oracle = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-20, foreach=False)
    for seed in range(5):
        for each in (model, twin):
            give_gradients(each, seed)
            each.embed.weight.grad[100:] = 0  # tokens that did not occur
        optimizer.step(0.01)
        oracle.step()
    for name, parameter in optimizer.parameters.items():
        torch.testing.assert_close(parameter, twin.get_parameter(name), atol=1e-7, rtol=2e-6)


@pytest.mark.parametrize(("table_eps", "stays"), [(1e-20, False), (1e-3, True)])
def test_rows_of_tokens_that_hardly_occur(table_eps: float, stays: bool) -> None:
    """Gradients of a head row that is never right are tiny and of one sign: without a floor it moves like any."""
    model = new_model()
    optimizer = Optimizer(model, dataclasses.replace(CONFIG, table_eps=table_eps, weight_decay=0.0))
    before = model.head.weight.detach().clone()
    for seed in range(5):
        give_gradients(model, seed)
        model.head.weight.grad[100:] = 1e-6
        optimizer.step(0.01)
    moved = (model.head.weight - before).abs().mean(1)
    assert moved[:100].min() > 0.005
    assert (moved[100:].max() < 1e-4) == stays


def test_router_biases_are_left_alone() -> None:
    model = new_model()
    optimizer = Optimizer(model, CONFIG)
    before = model.layers[2].ffn.gate.bias.detach().clone()
    train(model, optimizer, range(2))
    assert torch.equal(model.layers[2].ffn.gate.bias, before)
    assert "layers.2.ffn.gate.bias" not in optimizer.parameters
    assert "layers.2.ffn.gate.weight" in optimizer.parameters


# --- Muon ---


@pytest.mark.parametrize("split_query_heads", [False, True])
def test_matrices_step_as_if_each_were_alone(split_query_heads: bool) -> None:
    config = dataclasses.replace(CONFIG, split_query_heads=split_query_heads, weight_decay=0.2)
    model, twin = new_model(), new_model()
    optimizer = Optimizer(model, config)
    momenta: dict[tuple[str, int, int], Tensor] = {}
    for seed in range(2):
        for each in (model, twin):
            give_gradients(each, seed)
        optimizer.step(0.01)
        for name, rule in optimizer.treatments.items():
            if rule.group == "muon":
                step_apart(name, twin.get_parameter(name), momenta, split_query_heads)
    moved = {name: p for name, p in optimizer.parameters.items() if optimizer.treatments[name].group == "muon"}
    assert_same(weights_of_parameters(moved), {name: twin.get_parameter(name).detach() for name in moved})


def weights_of_parameters(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in parameters.items()}


@torch.no_grad()
def step_apart(
    name: str, parameter: Tensor, momenta: dict[tuple[str, int, int], Tensor], split_query_heads: bool
) -> None:
    assert parameter.grad is not None
    weights, gradients = (
        pieces(name, x, TINY, split_query_heads=split_query_heads) for x in (parameter, parameter.grad)
    )
    for piece, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        for number in range(len(weight)):
            matrix = gradient[number : number + 1].clone()
            momentum = momenta.setdefault((name, piece, number), torch.zeros_like(matrix))
            update = scaled_direction(look_ahead(momentum, matrix, 0.95), rms=0.18)
            apply_update(weight[number], update[0], lr=0.01, decay=0.2)


def test_size_of_batches_does_not_change_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, twin = new_model(), new_model()
    optimizer = Optimizer(model, CONFIG)
    monkeypatch.setattr(optimizer_module, "_BATCH_ELEMENTS", 2 * 32 * 64)
    small = Optimizer(twin, CONFIG)
    assert len(small._batches) > len(optimizer._batches)
    train(model, optimizer, range(3))
    train(twin, small, range(3))
    assert_same(weights_of(model), weights_of(twin))
    assert_same(optimizer.state_dict(), small.state_dict())


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_get_the_bits_of_one_process(num_ranks: int) -> None:
    alone = new_model()
    train(alone, Optimizer(alone, CONFIG), range(3))
    models = [new_model() for _ in range(num_ranks)]
    senders, barrier = [set() for _ in range(num_ranks)], threading.Barrier(num_ranks, timeout=60)
    sent: list[Tensor] = []

    def broadcast_of(rank: int) -> Callable[[Tensor, int], None]:
        def broadcast(tensor: Tensor, source: int) -> None:
            assert tensor.is_contiguous()  # as torch.distributed wants it
            senders[rank].add(source)
            if rank == source:
                sent[:] = [tensor.clone()]
            else:
                tensor.fill_(math.nan)
            barrier.wait()
            tensor.copy_(sent[0])
            barrier.wait()

        return broadcast

    def work(rank: int) -> None:
        ranks = Ranks(rank=rank, num_ranks=num_ranks, broadcast=broadcast_of(rank))
        train(models[rank], Optimizer(models[rank], CONFIG, ranks=ranks), range(3))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, seen in zip(models, senders, strict=True):
        assert_same(weights_of(model), weights_of(alone))
        assert seen == set(range(num_ranks))  # every rank had a share


def test_no_gradient_no_change_and_zero_gradient_only_decay() -> None:
    model = new_model()
    optimizer = Optimizer(model, CONFIG)
    train(model, optimizer, range(1))
    before, state = weights_of(model), {name: t.clone() for name, t in optimizer.state_dict().items()}
    optimizer.step(0.01)
    assert_same(weights_of(model), before)
    assert_same(optimizer.state_dict(), state)

    fresh = Optimizer(model, CONFIG)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    fresh.step(0.5)
    for name, rule in fresh.treatments.items():
        assert torch.equal(fresh.parameters[name], before[name] * (1 - 0.5 * rule.decay)), name


# --- state ---


def test_going_on_from_a_saved_state_gives_the_same_bits() -> None:
    model = new_model()
    optimizer = Optimizer(model, CONFIG)
    train(model, optimizer, range(3))
    saved, weights = save({n: t.contiguous() for n, t in optimizer.state_dict().items()}), weights_of(model)
    train(model, optimizer, range(3, 6))

    resumed = new_model(seed=9)
    with torch.no_grad():
        for name, parameter in resumed.named_parameters():
            parameter.copy_(weights[name])
    again = Optimizer(resumed, CONFIG)
    again.load_state_dict(load(saved))
    train(resumed, again, range(3, 6))
    assert_same(weights_of(resumed), weights_of(model))
    assert_same(again.state_dict(), optimizer.state_dict())


def test_state_names() -> None:
    state = Optimizer(new_model(), CONFIG).state_dict()
    assert state["layers.0.ffn.experts.w1.momentum"].shape == (3, 32, 64)
    assert state["embed.weight.mean_square"].shape == (512, 64)
    assert state["norm.weight.num_steps"] == 0
    assert "norm.weight.momentum" not in state


def test_state_that_does_not_fit_is_refused_whole() -> None:
    model = new_model()
    optimizer = Optimizer(model, CONFIG)
    train(model, optimizer, range(1))
    before = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    wrong = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    del wrong["norm.weight.mean"]
    wrong["hc_head.fn.momentum"] = torch.ones(4, 255)
    wrong["embed.weight.mean"] = wrong["embed.weight.mean"].double()
    wrong["other.momentum"] = torch.ones(1)
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state_dict(wrong)
    assert sorted(caught.value.problems) == [
        "embed.weight.mean must be torch.float32 [512, 64], got torch.float64 [512, 64]",
        "hc_head.fn.momentum must be torch.float32 [4, 256], got torch.float32 [4, 255]",
        "norm.weight.mean is missing",
        "other.momentum belongs to no parameter",
    ]
    assert_same(optimizer.state_dict(), before)


# --- clipping and statistics ---


def test_clip_scales_all_gradients_to_the_norm() -> None:
    model = new_model()
    optimizer = Optimizer(model, CONFIG)
    give_gradients(model, 0)
    gradients = {name: p.grad.double().clone() for name, p in optimizer.parameters.items()}
    exact = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
    assert optimizer.clip(None) == optimizer.clip(2 * exact) == pytest.approx(exact, rel=1e-6)
    assert torch.equal(model.head.weight.grad.double(), gradients["head.weight"])
    assert optimizer.clip(0.5) == pytest.approx(exact, rel=1e-6)
    assert optimizer.clip(None) == pytest.approx(0.5, rel=1e-6)
    for name, gradient in gradients.items():
        expected = gradient * (0.5 / exact)
        torch.testing.assert_close(optimizer.parameters[name].grad.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_clip_leaves_gradients_that_are_not_finite(bad: float) -> None:
    model = new_model()
    optimizer = Optimizer(model, CONFIG)
    give_gradients(model, 0)
    model.norm.weight.grad[3] = bad
    before = model.head.weight.grad.clone()
    assert not math.isfinite(optimizer.clip(1.0))
    assert torch.equal(model.head.weight.grad, before)


def test_clip_without_gradients() -> None:
    assert Optimizer(new_model(), CONFIG).clip(1.0) == 0.0


def test_statistics_by_group() -> None:
    model = new_model()
    optimizer = Optimizer(model, CONFIG)
    none_yet = optimizer.statistics()
    assert list(none_yet) == ["adamw_decay", "adamw_no_decay", "muon"]
    assert {s.update_rms for s in none_yet.values()} == {s.gradient_norm for s in none_yet.values()} == {None}
    give_gradients(model, 0)
    norm = optimizer.clip(0.1)
    optimizer.step(0.01)
    statistics = optimizer.statistics()
    assert statistics["muon"].update_rms == pytest.approx(0.18, rel=5e-3)
    for group in ("adamw_decay", "adamw_no_decay"):  # the first step of AdamW is the sign of the gradient
        assert statistics[group].update_rms == pytest.approx(1.0, rel=1e-5)
    assert sum(s.gradient_norm**2 for s in statistics.values()) == pytest.approx(norm**2)
    embed_and_head = [p.grad * (norm / 0.1) for p in (model.embed.weight, model.head.weight)]
    expected = math.sqrt(sum(g.double().square().sum().item() for g in embed_and_head))
    assert statistics["adamw_decay"].gradient_norm == pytest.approx(expected, rel=1e-5)


# --- the whole ---


@pytest.mark.parametrize("changes", [{}, {"muon": False}, {"newton_schulz_steps": (4, 2)}])
def test_a_quadratic_bowl_is_descended(changes: dict[str, object]) -> None:
    config = dataclasses.replace(CONFIG, peak_lr=0.1, end_lr_share=0.001, weight_decay=0.0, **changes)
    model, target = new_model(), weights_of(new_model(seed=7))
    optimizer = Optimizer(model, config)

    def loss() -> Tensor:
        return sum((p - target[name]).square().sum() for name, p in optimizer.parameters.items())

    first = loss().item()
    for step in range(60):
        loss().backward()
        optimizer.clip(config.clip_norm)
        optimizer.step(learning_rate(step, 60, config))
        optimizer.zero_grad()
    assert loss().item() < 0.01 * first


def test_models_that_cannot_be_trained_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"layers\.0\.ffn\.experts\.w1 is no parameter of the model \(18 are missing\)"
    ):
        Optimizer(Model.load("tiny"), CONFIG)  # holds each expert apart, as checkpoints do
    with pytest.raises(UsageError, match=r"embed\.weight must be float32 to be trained, got torch\.bfloat16"):
        Optimizer(new_model().bfloat16(), CONFIG)
    model = new_model()
    model.layers[0].attn.extra = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(UsageError, match=r"no rule says how to train the parameter layers\.0\.attn\.extra"):
        Optimizer(model, CONFIG)
