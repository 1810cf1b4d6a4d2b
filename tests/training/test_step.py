"""The objective and the step: gradients by finite differences, cutting into passes, overfitting, biases, forced
experts, low-precision training, and that training and inference compute the same model."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from training_case import changed, fresh_model, random_batch, stepper

from pelagos.model.transformer import Model
from pelagos.ops.dispatch import reference_ops
from pelagos.recipes.tiny import tiny
from pelagos.training.config import TrainConfig
from pelagos.training.export import export
from pelagos.training.loss import balance_loss, cross_entropy, next_tokens
from pelagos.training.objective import Weights, evaluate_objective
from pelagos.training.qat import rounding_error, served_value, served_weights
from pelagos.training.stability import SpikeDetector, chosen_experts
from pelagos.training.views import named_weights, with_config

ALL = Weights(mtp=0.3, balance=0.05, index=1.0)


@pytest.fixture
def in_double() -> Iterator[pytest.MonkeyPatch]:
    """Let training compute in float64, which finite differences need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", lambda self: self.double())
        patch.setattr(torch, "float32", torch.float64)
        yield patch


def _spread_model(config: TrainConfig) -> Model:
    """A float64 model in which no parameter sits at a value that hides its gradient."""
    model, generator = fresh_model(config).double(), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith((".base", ".scale", "sink", ".ape")):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.dtype = torch.float64
    return model


def _slope(model: Model, parameter: Tensor, direction: Tensor, objective: Callable[[], Tensor]) -> float:
    values = []
    for sign in (1, -1):
        parameter.data += sign * 1e-5 * direction
        with torch.no_grad():
            values.append(float(objective()))
        parameter.data -= sign * 1e-5 * direction
    return (values[0] - values[1]) / 2e-5


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize(("indexer", "sparse"), [(False, False), (False, True), (True, False)])
def test_gradients_by_finite_differences(indexer: bool, sparse: bool) -> None:
    """One parameter of every name, along its own gradient. The indexer has an objective of its own."""
    model, batch = _spread_model(tiny()), random_batch(2, 48, 3)
    batch = dataclasses.replace(batch, loss_weights=batch.loss_weights.double())
    weights = Weights(mtp=0.0, balance=0.0, index=1.0) if indexer else Weights(mtp=0.3, balance=0.05, index=0.0)

    def objective() -> Tensor:
        outcome = evaluate_objective(model, batch, sparse=sparse, weights=weights)
        return outcome.index if indexer else outcome.total(weights)

    objective().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and (".indexer." in n) == indexer}
    checked = 0
    for name in {name.split(".", 2)[-1]: name for name in gradients}.values():
        gradient = gradients[name]
        if float(gradient.norm()) > 1e-7:
            slope = _slope(model, model.get_parameter(name), gradient / gradient.norm(), objective)
            assert slope == pytest.approx(float(gradient.norm()), rel=1e-5, abs=1e-9), name
            checked += 1
    assert checked >= (5 if indexer else 30)


def test_cross_entropy_is_torchs() -> None:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(5000, 16, generator=g, requires_grad=True)
    head = torch.randn(40, 16, generator=g, requires_grad=True)
    targets, weights = torch.randint(0, 40, (5000,), generator=g), torch.rand(5000, generator=g).round()
    loss = cross_entropy(hidden, head, targets, weights) / weights.sum()
    each = torch.nn.functional.cross_entropy(hidden @ head.t(), targets, reduction="none")
    expected = (each * weights).sum() / weights.sum()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    ours, theirs = torch.autograd.grad(2 * loss, [hidden, head]), torch.autograd.grad(2 * expected, [hidden, head])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
    assert float(cross_entropy(hidden, head, targets, torch.zeros(5000)).detach()) == 0.0


def test_targets_do_not_cross_a_document() -> None:
    ids, documents = torch.arange(8).view(1, 8), torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1]])
    weights = torch.tensor([[0.0, 1, 1, 0, 1, 0, 0, 0]])
    targets, predicted = next_tokens(ids, documents, weights, 1)
    assert targets[predicted > 0].tolist() == [1, 2, 4]
    targets, predicted = next_tokens(ids, documents, weights, 2)
    assert targets[predicted > 0].tolist() == [2]


def test_balance_loss_is_one_at_perfect_balance() -> None:
    scores, chosen = torch.ones(2, 8, 4), torch.arange(16).view(2, 8, 1) % 4
    counted = torch.ones(2, 8, dtype=torch.bool)
    assert float(balance_loss(scores, chosen, counted)) == pytest.approx(1.0)
    crowded = torch.zeros(2, 8, 1, dtype=torch.int64)
    skewed = torch.tensor([4.0, 1, 1, 1]).expand(2, 8, 4)
    assert float(balance_loss(skewed, crowded, counted)) > 2.0


@pytest.mark.parametrize("micro_tokens", [96, 200])
def test_cutting_a_step_into_passes_changes_rounding_alone(micro_tokens: int) -> None:
    batch = random_batch(6, 96, 5)
    whole, cut = stepper(changed(tiny(), micro_tokens=10_000)), stepper(changed(tiny(), micro_tokens=micro_tokens))
    a, b = whole.gradients(0, batch), cut.gradients(0, batch)
    for part in ("loss", "main", "mtp", "balance", "index"):
        assert getattr(a, part) == pytest.approx(getattr(b, part), rel=1e-5), part
    assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-4)
    assert {n: x.tolist() for n, x in a.load.items()} == {n: x.tolist() for n, x in b.load.items()}
    for name, parameter in whole.model.named_parameters():
        other = cut.model.get_parameter(name)
        if parameter.grad is None:
            assert other.grad is None
        else:
            assert other.grad is not None
            assert torch.allclose(parameter.grad, other.grad, rtol=1e-3, atol=1e-6), name


def test_recomputing_gives_the_same_bits() -> None:
    batch = random_batch(2, 96, 5)
    plain, recomputing = stepper(), stepper(changed(tiny(), recompute=True))
    assert plain.gradients(0, batch).loss == recomputing.gradients(0, batch).loss
    for name, parameter in plain.model.named_parameters():
        other = recomputing.model.get_parameter(name)
        if parameter.grad is not None:
            assert other.grad is not None
            assert torch.equal(parameter.grad, other.grad), name


def test_a_fixed_batch_is_learned_by_heart() -> None:
    config = tiny()
    late = changed(config, optimizer=dataclasses.replace(config.optimizer, decay_start_share=1.0, decay_end_share=1.0))
    trained = stepper(changed(late, num_steps=10_000))
    batch = random_batch(2, 64, 7)
    batch = dataclasses.replace(batch, loss_weights=(batch.loss_weights > 0).float())
    for step in range(150):
        report = trained.gradients(step, batch)
        trained.apply(step, report)
        if report.main < 0.1:
            break
    assert report.main < 0.1
    assert step < 150


def test_biases_move_against_the_load() -> None:
    trained = stepper()
    report = trained.gradients(0, random_batch(4, 96, 1))
    trained.apply(0, report)
    assert report.load
    for name, counts in report.load.items():
        bias = trained.model.get_submodule(name).bias
        expected = tiny().balance.bias_speed * torch.sign(counts.float().mean() - counts.float())
        assert torch.equal(bias.detach(), expected)
        assert int(counts.sum()) == 2 * int((random_batch(4, 96, 1).document_ids >= 0).sum())


def test_forced_experts_of_the_same_weights_change_nothing() -> None:
    """Anticipatory routing with delay 0, or with frozen weights, is normal training to the bit."""
    batch = random_batch(4, 96, 2)
    plain, forced = stepper(), stepper()
    passes = forced.passes(batch)
    experts = chosen_experts(forced.view(0), passes, sparse=False)
    assert plain.gradients(0, batch).loss == forced.gradients(0, batch, experts).loss
    for name, parameter in plain.model.named_parameters():
        grad = forced.model.get_parameter(name).grad
        assert (parameter.grad is None) == (grad is None)
        if parameter.grad is not None and grad is not None:
            assert torch.equal(parameter.grad, grad), name
    wrong = [{name: (ids + 1) % 8 for name, ids in part.items()} for part in experts]
    assert stepper().gradients(0, batch, wrong).loss != stepper().gradients(0, batch).loss


def test_training_and_inference_are_the_same_model() -> None:
    model = fresh_model(tiny())
    ids = torch.randint(0, 512, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    inference = with_config(model, model.config, reference_ops())
    batch = random_batch(1, 200, 3)
    one = dataclasses.replace(
        batch,
        token_ids=torch.tensor([ids]),
        document_ids=torch.zeros(1, 200, dtype=torch.int32),
        positions=torch.arange(200).view(1, 200),
        loss_weights=torch.ones(1, 200),
    )
    logits = inference.logits(ids)
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    outcome = evaluate_objective(model, one, sparse=True, weights=ALL)
    assert float(outcome.main.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_low_precision_training_is_the_exported_model_to_the_bit(tmp_path: object) -> None:
    """Rounded weights on the reference give exactly the logits of the exported FP4 and FP8 checkpoint."""
    config = tiny()
    model = fresh_model(config)
    for _, weight in named_weights(model).items():
        if weight.is_floating_point():
            weight.data += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    qat = with_config(model, dataclasses.replace(config.model, official_rounding=True), reference_ops())
    ids = torch.randint(0, 512, (150,), generator=torch.Generator().manual_seed(3)).tolist()
    with served_weights(model):
        rounded = with_config(model, qat.config, reference_ops()).logits(ids)
    export(qat, tmp_path, official=True)  # type: ignore[arg-type]
    loaded = Model.load(tmp_path, implementation="reference")  # type: ignore[arg-type]
    assert loaded.config.storage == "official"
    assert loaded.config.official_rounding
    assert torch.equal(loaded.logits(ids), rounded)
    assert not torch.equal(with_config(model, config.model, reference_ops()).logits(ids), rounded)


def test_served_weights_come_and_go() -> None:
    model = fresh_model(tiny())
    before = {name: weight.clone() for name, weight in named_weights(model).items()}
    with served_weights(model):
        inside = named_weights(model)["layers.1.ffn.experts.w1"].clone()
    assert torch.equal(inside, served_value(before["layers.1.ffn.experts.w1"], "expert"))
    assert not torch.equal(inside, before["layers.1.ffn.experts.w1"])
    assert all(torch.equal(weight, before[name]) for name, weight in named_weights(model).items())
    health = rounding_error(model)
    assert 0.10 < health["relative_error"] < 0.14
    assert 0.98 < health["gain"] < 1.0
    assert abs(health["bias"]) < 3e-3
    assert 0.08 < health["zero_codes"] < 0.15


def test_gradients_in_low_precision_reach_the_masters() -> None:
    config = tiny()
    trained = stepper(changed(config, qat=dataclasses.replace(config.qat, start=0.0)))
    before = named_weights(trained.model)["layers.1.ffn.experts.w1"].clone()
    report = trained.gradients(0, random_batch(2, 96, 4))
    trained.apply(0, report)
    after = named_weights(trained.model)["layers.1.ffn.experts.w1"]
    assert not torch.equal(before, after)
    assert not torch.equal(after, served_value(after.detach(), "expert"))


def test_spikes() -> None:
    detector = SpikeDetector()
    for i in range(60):
        assert not detector.is_bad(4.0 - 0.01 * i + 0.02 * (-1) ** i, 6.0)
        detector.add(4.0 - 0.01 * i + 0.02 * (-1) ** i)
    assert detector.is_bad(8.0, 6.0)
    assert detector.is_bad(float("nan"), None)
    assert detector.is_bad(float("inf"), 6.0)
    assert not detector.is_bad(8.0, None)
    detector.restart()
    assert not detector.is_bad(8.0, 6.0)
