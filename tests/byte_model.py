"""A checkpoint folder for commands: random values, a tokenizer of single bytes and the marks of a chat."""

import dataclasses
import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file

from pelagos.chat import tokenizer as chat_tokenizer
from pelagos.chat.tokenizer import Tokenizer
from pelagos.model.config_json import config_to_json
from pelagos.model.presets import preset
from pelagos.model.tensors import tensor_specs

MARKS = [
    getattr(chat_tokenizer, name) for name in ("BOS", "EOS", "USER", "ASSISTANT", "THINK_START", "THINK_END", "DSML")
]


def write_byte_model(folder: Path) -> Path:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(MARKS)
    library.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    config = dataclasses.replace(
        preset("tiny"), vocab_size=tokenizer.vocab_size, bos_id=tokenizer.bos_id, eos_ids=(tokenizer.eos_id,)
    )
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for spec in tensor_specs(config):
        if spec.role == "ids":
            tensors[spec.name] = torch.randint(0, config.num_experts, spec.shape, generator=generator)
        else:
            tensors[spec.name] = torch.randn(spec.shape, generator=generator) * spec.shape[-1] ** -0.5
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_json(config)))
    return folder
