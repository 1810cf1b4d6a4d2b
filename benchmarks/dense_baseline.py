"""A dense transformer of nano's active size on nano's own batches: held-out bits per byte of both, source by source.

    python benchmarks/dense_baseline.py --run RUN --data DATA --step N [--threads N] [--out FILE.json]

RUN is a folder of `pelagos train nano` that keeps the checkpoint of step N. The peer is transformers' Llama: 6 layers
of width 256, inner width so that its parameters are as many as nano uses for a token, torch's Muon (scaled as ours is)
for its matrices and AdamW for the rest, with nano's rates. It reads the same batches from the first step to step N.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine_record
from run_weights import model_at
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pelagos.chat.tokenizer import Tokenizer
from pelagos.cli.options import use_threads
from pelagos.model import accounting
from pelagos.recipes.nano import nano
from pelagos.training.batch import PackedBatch
from pelagos.training.config import TrainConfig
from pelagos.training.data import open_loader, open_shards
from pelagos.training.held_out import measure_text, passes, text_batch
from pelagos.training.overrides import with_settings

CONTEXT, TOKENS_PER_SOURCE, LOG_EVERY = 1024, 4096, 25


def dense_model(config: TrainConfig) -> LlamaForCausalLM:
    """As many parameters as nano uses for a token, its tables included."""
    model, wanted = config.model, accounting.parameters(config.model).active_with_embedding
    width, layers = model.hidden_size, len(model.layers)
    fixed = 2 * model.vocab_size * width + layers * 4 * width * width
    inner = round((wanted - fixed) / (layers * 3 * width) / 8) * 8
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=model.num_heads, max_position_embeddings=1 << 14, tie_word_embeddings=False,
            attn_implementation="sdpa", initializer_range=config.init_std, use_cache=False,
        )
    )  # fmt: skip


def log_probabilities(model: LlamaForCausalLM, batch: PackedBatch) -> Tensor:
    """Of each token from those before it in its document; [B, T], 0 for the first of a row."""
    documents, length = batch.document_ids, batch.document_ids.shape[1]
    seen = (documents[:, :, None] == documents[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]
    logits = model(input_ids=batch.token_ids, attention_mask=mask, position_ids=batch.positions).logits
    found = -F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.token_ids[:, 1:].flatten(), reduction="none")
    return F.pad(found.view(len(documents), -1), (1, 0))


def optimizers(model: LlamaForCausalLM, config: TrainConfig) -> list[torch.optim.Optimizer]:
    rate, decay = config.optimizer.peak_lr, config.optimizer.weight_decay
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    tables = [p for name, p in named.items() if p.ndim == 2 and ("embed" in name or "lm_head" in name)]
    rest = [p for p in named.values() if p.ndim != 2]
    groups = [{"params": tables, "lr": rate * config.optimizer.embed_lr_mult, "weight_decay": decay, "eps": 1e-8}]
    groups += [{"params": rest, "lr": rate, "weight_decay": 0.0, "eps": 1e-8}]
    muon = torch.optim.Muon(matrices, lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.95))]


def batches(config: TrainConfig, tokenizer: Tokenizer, num_steps: int) -> Iterator[PackedBatch]:
    loader = open_loader(config.data, tokenizer)
    for step in range(num_steps):
        stage = config.stage_at(step)
        loader.set_mixture(stage.mixture)
        yield loader.batch(config.rows_at(step), stage.sequence_length)


def train(model: LlamaForCausalLM, config: TrainConfig, tokenizer: Tokenizer, num_steps: int) -> int:
    """Returns the tokens read."""
    steps, num_tokens, began = optimizers(model, config), 0, time.perf_counter()
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in steps]
    for number, batch in enumerate(batches(config, tokenizer, num_steps), 1):
        total = batch.loss_weights.sum()
        loss = 0.0
        for part in passes(batch, config.micro_tokens, torch.device("cpu")):
            one = -(log_probabilities(model, part) * part.loss_weights).sum() / total
            one.backward()
            loss += one.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        for optimizer, usual in zip(steps, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, usual, strict=True):
                group["lr"] = rate * min(1.0, number / config.optimizer.warmup_steps)
            optimizer.step()
            optimizer.zero_grad()
        num_tokens += batch.num_tokens
        if number % LOG_EVERY == 0:
            speed = num_tokens / (time.perf_counter() - began)
            print(
                f"step {number}/{num_steps}  {num_tokens:,} tokens  loss {loss:.3f}  {speed:,.0f} tokens/s", flush=True
            )
    return num_tokens


@torch.no_grad()
def dense_scores(model: LlamaForCausalLM, texts: dict[str, PackedBatch], pass_tokens: int) -> dict[str, float]:
    """Bits per byte."""
    found = {}
    for name, batch in texts.items():
        nats, num_bytes = 0.0, 0
        for part in passes(batch, pass_tokens, torch.device("cpu")):
            counted = part.loss_weights > 0
            nats -= log_probabilities(model, part)[counted].double().sum().item()
            num_bytes += int(part.num_bytes[counted].sum())
        found[name] = nats / num_bytes / 0.6931471805599453
    return found


def nano_scores(config: TrainConfig, run: Path, step: int, texts: dict[str, PackedBatch]) -> dict[str, float]:
    """Bits per byte of the run's weights at that step, CSA queries seeing their top rows as in inference."""
    model = model_at(config.model, run, step)
    report = measure_text(
        model, texts, split="test", context_length=CONTEXT, pass_tokens=config.micro_tokens, on_pass=lambda num: None
    )
    return {name: score.bits_per_byte for name, score in report.sources.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    use_threads(options.threads)
    torch.set_flush_denormal(True)
    config = with_settings(nano(), [f"data.folder={options.data}"])
    tokenizer = Tokenizer.from_folder(options.data)
    shards = open_shards(options.data, "test")
    sizes = {"context_length": CONTEXT, "num_tokens": TOKENS_PER_SOURCE, "seed": 0}
    texts = {name: text_batch(name, shard, tokenizer, **sizes) for name, shard in shards.items()}
    ours = nano_scores(config, options.run, options.step, texts)
    model = dense_model(config)
    num_tokens = train(model, config, tokenizer, options.step)
    peers = dense_scores(model, texts, config.micro_tokens)
    result: dict[str, Any] = {
        "step": options.step, "tokens": num_tokens,
        "dense_parameters": sum(p.numel() for p in model.parameters()),
        "bits_per_byte": {name: {"nano": ours[name], "dense": peers[name]} for name in sorted(ours)},
        "machine": machine_record(options.threads),
    }  # fmt: skip
    for name, both in result["bits_per_byte"].items():
        print(f"{name:24} nano {both['nano']:.3f}  dense {both['dense']:.3f}")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
