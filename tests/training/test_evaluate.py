"""Evaluation of losses: against hand loops over Model.logits and Model.draft, and the whole of it on a small folder."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_case import WORDS, config, documents, exact, tokenizer, untrained, write_data
from torch import Tensor

from pelagos.common.errors import ConfigError, UsageError
from pelagos.model.config import ModelConfig
from pelagos.model.mtp import MtpBlock
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import reference_ops
from pelagos.training.batch import PackedBatch
from pelagos.training.data import open_shards
from pelagos.training.evaluate import EvaluateConfig, Evaluation, evaluate, write_evaluation
from pelagos.training.evaluation import DraftScore, RecallReport, Share, TextReport, TextScore
from pelagos.training.evaluation_plots import read_evaluation
from pelagos.training.held_out import measure_attention, measure_text, mixed_batch, objective_loss, text_batch
from pelagos.training.low_precision import exact_loss, measure_low_precision
from pelagos.training.objective import routing_of
from pelagos.training.qat import served_value
from pelagos.training.recall import RecallConfig
from pelagos.training.views import named_weights, official_weights, with_config

CONTEXT = 48
LN_2 = math.log(2)
GLOSSARY = "".join(f"{word}{other} (n): a ship goes over the {other}\n" for word in WORDS for other in WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    return write_data(path, sea=documents(1, 6, 90), land=documents(2, 9, 30), wordnet=[GLOSSARY])


def batch(folder: Path, name: str = "sea", num_tokens: int = 1 << 20, seed: int = 0) -> PackedBatch:
    shard = open_shards(folder, "test")[name]
    return text_batch(name, shard, tokenizer(), context_length=CONTEXT, num_tokens=num_tokens, seed=seed)


def pieces(packed: PackedBatch) -> list[list[int]]:
    """The documents of a batch."""
    found = []
    for ids, numbers in zip(packed.token_ids, packed.document_ids, strict=True):
        found += [ids[numbers == number].tolist() for number in range(int(numbers.max()) + 1)]
    return found


def measured(model: Model, **batches: PackedBatch) -> TextReport:
    return measure_text(
        model, batches, split="test", context_length=CONTEXT, pass_tokens=3 * CONTEXT, on_pass=lambda num: None
    )


def test_a_batch_holds_every_piece_once(folder: Path) -> None:
    shard = open_shards(folder, "test")["sea"]
    whole = [[tokenizer().bos_id, *shard.document(i).tolist(), tokenizer().eos_id] for i in range(shard.num_documents)]
    expected = [ids[at : at + CONTEXT] for ids in whole for at in range(0, len(ids), CONTEXT)]
    assert len(expected) > len(whole)
    assert sorted(pieces(batch(folder))) == sorted(expected)
    some = pieces(batch(folder, num_tokens=100))
    assert 100 <= sum(map(len, some)) < 100 + CONTEXT
    assert all(piece in expected for piece in some)
    assert some != pieces(batch(folder, num_tokens=100, seed=1))


def test_a_mixed_batch_takes_rows_in_turn(folder: Path) -> None:
    sea, land = batch(folder, "sea"), batch(folder, "land")
    mixed = mixed_batch([sea, land], 5)
    expected = torch.stack([part.token_ids[i] for i in range(3) for part in (sea, land)][:5])
    assert torch.equal(mixed.token_ids, expected)
    assert len(mixed_batch([sea, land], 1 << 20).token_ids) == len(sea.token_ids) + len(land.token_ids)


def test_bits_per_byte_are_those_of_logits(folder: Path) -> None:
    model, packed = untrained(), batch(folder)
    score = measured(model, sea=packed).sources["sea"]
    nats, num_tokens, text = 0.0, 0, b""
    for piece in pieces(packed):
        log_p = torch.log_softmax(exact(model).logits(piece).double(), 1)
        nats -= float(log_p[torch.arange(len(piece) - 1), piece[1:]].sum())
        num_tokens += len(piece) - 1
        text += tokenizer().decode_bytes(piece[1:], skip_special=True)
    assert score == TextScore(num_tokens=num_tokens, num_bytes=len(text), nats=score.nats)
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / LN_2 / len(text), rel=1e-5)
    assert score.loss == pytest.approx(nats / num_tokens, rel=1e-5)


def test_expert_load_is_that_of_the_routers(folder: Path) -> None:
    model, packed = untrained(), batch(folder)
    counts: dict[str, Tensor] = {}
    for piece in pieces(packed):
        with routing_of(exact_model := exact(model)) as routing:
            exact_model.logits(piece)
        for name, routed in routing.items():
            found = torch.bincount(routed.chosen.flatten(), minlength=8)
            counts[name] = counts.get(name, torch.zeros_like(found)) + found
    expected = {int(name.split(".")[1]): float(n.max() / n.double().mean()) for name, n in counts.items()}
    assert measured(model, sea=packed).expert_load == pytest.approx(expected, rel=0.02)
    assert set(expected) == {0, 1, 2, 3}


def random_rows(num: int) -> Tensor:
    return torch.randn(num, 64, generator=torch.Generator().manual_seed(1))


def test_draft_acceptance_is_that_of_a_hand_loop(folder: Path) -> None:
    """A head that knows six common words alone, so that a draft has a chance."""
    model, packed = untrained(), batch(folder)
    common = tokenizer().encode(" sea deep ship night lamps lit")
    with torch.no_grad():
        model.head.weight.copy_(torch.zeros(512, 64).index_copy(0, torch.tensor(common), random_rows(len(common))))
    inference = exact(model)
    accepted = right = num_all = 0
    for piece in pieces(packed):
        if len(piece) < 3:
            continue
        own = inference.logits(piece).argmax(1).tolist()  # own[t] follows token t
        streams = inference.streams(piece, inference.new_state())
        logits, _ = inference.draft(streams[:-1], piece[1:], inference.new_draft_state())
        for place, drafted in enumerate(logits.argmax(1).tolist()[: len(piece) - 2]):
            num_all += 1
            accepted += drafted == own[place + 1]
            right += drafted == piece[place + 2]
    draft = measured(model, sea=packed).draft
    assert draft is not None
    assert draft.accepted.num_all == draft.right.num_all == num_all
    assert draft.accepted.num_right == pytest.approx(accepted, abs=1)
    assert draft.right.num_right == pytest.approx(right, abs=1)
    assert 10 < accepted < num_all - 10
    assert right > 5


def agreeing(model_config: ModelConfig) -> Model:
    """A model that always thinks the same token likeliest, and so does its block for the token after next."""
    model = untrained(model_config=model_config)
    block = model.mtp[0]
    assert isinstance(block, MtpBlock)
    with torch.no_grad():
        for norm in (model.norm, block.norm):
            norm.weight.zero_()
    return model


def test_all_drafts_of_a_constant_model_are_accepted(folder: Path) -> None:
    draft = measured(agreeing(config()), sea=batch(folder)).draft
    assert draft is not None
    assert draft.accepted.value == 1.0
    assert draft.right.num_right == 0  # token 0 is in no text
    assert measured(untrained(model_config=config(mtp_layers=())), sea=batch(folder)).draft is None


def test_where_all_rows_are_top_rows_sparse_is_dense(folder: Path) -> None:
    every = measure_attention(untrained(model_config=config(index_topk=CONTEXT)), batch(folder), pass_tokens=CONTEXT)
    assert every.sparse == pytest.approx(every.dense, rel=1e-6)
    assert every.indexer_recall == pytest.approx({1: 1.0, 3: 1.0}, rel=1e-3)
    few = measure_attention(untrained(model_config=config(index_topk=1)), batch(folder), pass_tokens=CONTEXT)
    assert few.dense == pytest.approx(every.dense, rel=1e-6)
    assert few.sparse != pytest.approx(few.dense, rel=1e-4)
    assert all(0.05 < recall < 0.95 for recall in few.indexer_recall.values())


def test_attention_without_an_indexer(folder: Path) -> None:
    layers = tuple(layer for layer in config().layers if layer.index != "own")
    report = measure_attention(untrained(model_config=config(layers=layers)), batch(folder), pass_tokens=512)
    assert report.sparse == report.dense
    assert report.indexer_recall == {}


def test_passes_change_rounding_alone(folder: Path) -> None:
    model, packed = untrained(), batch(folder)
    losses = [objective_loss(model, packed, pass_tokens=num)[0] for num in (1, 3 * CONTEXT, 1 << 20)]
    assert losses == pytest.approx([exact_loss(exact(model), packed)] * 3, rel=1e-5)


def test_served_values_cost_nothing_more(folder: Path) -> None:
    """A model that holds served values already: rounding it changes nothing, and the export computes with the same."""
    model, packed = untrained(std=0.1), batch(folder)
    with torch.no_grad():
        for spec, weight in official_weights(model):
            if spec.role not in ("ids", "float32"):
                weight.copy_(served_value(weight, spec.role))
    losses = measure_low_precision(model, packed, pass_tokens=1024)
    assert losses["fp4_weights"] == losses["full"]
    rounded = with_config(model, config(official_rounding=True), reference_ops())
    assert losses["exported"] == exact_loss(rounded, packed)
    assert losses["fp4"] != pytest.approx(losses["full"], rel=1e-3)


def test_rounding_a_model_changes_its_loss(folder: Path) -> None:
    model, packed = untrained(std=0.1), batch(folder)
    before = {name: weight.clone() for name, weight in named_weights(model).items()}
    losses = measure_low_precision(model, packed, pass_tokens=1024)
    assert losses["full"] == pytest.approx(exact_loss(exact(model), packed), rel=1e-5)
    assert losses["fp4_weights"] != pytest.approx(losses["full"], rel=1e-4)
    assert losses["exported"] == pytest.approx(losses["fp4"], rel=1e-4)
    assert all(torch.equal(weight, before[name]) for name, weight in named_weights(model).items())


def small(**changes: Any) -> EvaluateConfig:
    grid = RecallConfig(lengths=(256,), depths=(0.0, 1.0), num_samples=1, answer_tokens=4)
    settings: dict[str, Any] = {
        "context_length": CONTEXT,
        "tokens_per_source": 100,
        "batch_tokens": 200,
        "samples_per_task": 2,
        "tasks": ("kv", "greeting", "dict"),
        "task_tokens": 200,
        "answer_tokens": 4,
        "recall": grid,
    }
    return EvaluateConfig(**settings | changes)


def test_a_whole_evaluation(folder: Path, tmp_path: Path) -> None:
    told: dict[str, tuple[int, int]] = {}
    model = untrained()
    before = {name: weight.clone() for name, weight in named_weights(model).items()}
    found = evaluate(model, tokenizer(), folder, small(), lambda what, *numbers: told.update({what: numbers}), step=7)
    assert all(torch.equal(weight, before[name]) for name, weight in named_weights(model).items())
    assert list(told) == ["held-out text", "attention", "low precision", "tasks", "recall"]
    assert told["tasks"] == (6, 6)
    assert told["recall"] == (512, 512)
    assert told["held-out text"][0] == told["held-out text"][1]

    write_evaluation(found, tmp_path / "run")
    read = read_evaluation(tmp_path / "run")
    assert read is not None
    assert found.text is not None
    assert found.recall is not None
    assert read.step == 7
    assert read.bits_per_byte == {name: score.bits_per_byte for name, score in found.text.sources.items()}
    assert set(read.bits_per_byte) == {"land", "sea", "wordnet"}
    assert read.tasks == {"kv": 0.0, "greeting": 0.0, "dict": 0.0}
    assert read.qat == found.qat
    assert read.recall is not None
    assert read.recall.accuracy == ((0.0,), (0.0,))
    assert (tmp_path / "run/recall.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "run/recall.json").read_text()) == found.recall.grid()
    again = evaluate(model, tokenizer(), folder, small(), step=7)
    assert dataclasses.replace(again, seconds=found.seconds) == found


def test_parts_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    off = small(tokens_per_source=None, batch_tokens=None, samples_per_task=None, recall=None)
    found = evaluate(untrained(), tokenizer(), folder, off)
    assert found == Evaluation(seconds=found.seconds)
    write_evaluation(found, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"step": None, "seconds": dict(found.seconds)}
    assert read_evaluation(tmp_path) is not None
    only_attention = evaluate(
        untrained(), tokenizer(), folder, dataclasses.replace(off, batch_tokens=100, low_precision=False)
    )
    assert only_attention.qat == {}
    assert only_attention.attention is not None


def test_json_is_as_documented() -> None:
    nan = TextScore(num_tokens=0, num_bytes=0, nats=0.0)
    found = Evaluation(
        step=3,
        text=TextReport(
            split="valid",
            context_length=64,
            sources={"a": TextScore(num_tokens=10, num_bytes=40, nats=20 * LN_2), "b": nan},
            expert_load={1: 1.5},
            draft=DraftScore(accepted=Share(num_right=3, num_all=4), right=Share(num_right=1, num_all=4)),
        ),
        tasks={"kv": Share(num_right=1, num_all=2), "none": Share(num_right=0, num_all=0)},
        tool_calls=Share(num_right=1, num_all=1),
        recall=RecallReport(lengths=(128, 256), depths=(0.5,), num_samples=4, num_right=((4, 1),)),
        qat={"full": 2.0, "fp4": math.nan},
    )
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert plain["bits_per_byte"] == {"a": 0.5}
    assert plain["held_out"]["bits_per_byte"] == 0.5
    assert plain["held_out"]["sources"]["b"]["loss"] is None
    assert plain["held_out"]["expert_load"] == {"1": 1.5}
    assert plain["held_out"]["mtp"] == {"acceptance": 0.75, "accuracy": 0.25, "num_tokens": 4}
    assert plain["tasks"] == {"kv": 0.5}
    low, high = Share(num_right=1, num_all=2).interval
    assert plain["task_counts"]["kv"] == {"num_right": 1, "num_all": 2, "low": low, "high": high}
    assert plain["recall"] == {"lengths": [128, 256], "depths": [0.5], "accuracy": [[1.0, 0.25]], "num_samples": 4}
    assert "qat" not in plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recall": RecallConfig(lengths=(8192,))}, "lengths must be at most 4096"),
        ({"context_length": 8192}, "context_length must be at most 4096"),
        ({"task_tokens": 8192}, "task_tokens must be at most 4096"),
        ({"tasks": ("store-tool",)}, "task_tokens must be larger for the task store-tool"),
        ({"split": "valid"}, "holds no text of split valid"),
    ],
)
def test_what_cannot_work_is_refused_before_the_work(folder: Path, changes: dict[str, Any], message: str) -> None:
    def started(*arguments: object) -> None:
        raise AssertionError("work has begun")

    with pytest.raises(UsageError, match=message):
        evaluate(untrained(), tokenizer(), folder, small(**changes), started)


def test_a_vocabulary_too_large_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="has 512 ids, but the model only 500"):
        evaluate(untrained(model_config=config(vocab_size=500)), tokenizer(), folder, small())


def test_a_bad_config_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tasks must be among kv, .* got 'chess'"):
        EvaluateConfig(tasks=("kv", "chess"))
    with pytest.raises(ConfigError, match="split must be one of 'valid', 'test'"):
        EvaluateConfig(split="train")


def test_text_bytes_agree_with_the_shard(folder: Path) -> None:
    """Whole documents: all bytes of the text are predicted."""
    shard = open_shards(folder, "test")["land"]
    packed = text_batch("land", shard, tokenizer(), context_length=512, num_tokens=1 << 20, seed=0)
    score = measured(untrained(), land=packed).sources["land"]
    assert score.num_bytes == shard.num_text_bytes
    assert score.num_tokens == int(np.sum(shard.lengths() + 1))
