"""Two vocabularies for the chat tests: DeepSeek-V4's own, and a tiny one trained here with the same special tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from chat_golden import FOLDER, regenerate

from pelagos.chat.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def official_file() -> Path:
    path: Path = regenerate.official_file()
    return path


@pytest.fixture(scope="session")
def official(official_file: Path) -> Tokenizer:
    return Tokenizer.from_file(official_file)


@pytest.fixture(scope="session")
def tiny_file(official_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 600 entries, then all named special tokens of V4: other ids, many tokens of single bytes."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train([str(FOLDER / "conversations.json")], trainer)
    added = json.loads(official_file.read_text(encoding="utf-8"))["added_tokens"]
    library.add_tokens(
        [tokenizers.AddedToken(t["content"], normalized=False) for t in added if "place" not in t["content"]]
    )
    path = tmp_path_factory.mktemp("tiny") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_file: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_file.parent)


@pytest.fixture(params=["official", "tiny"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each of the two vocabularies in turn."""
    vocabulary: Tokenizer = request.getfixturevalue(request.param)
    return vocabulary


@pytest.fixture
def edited_file(tiny_file: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Writes the tiny file again after an edit of its JSON, and returns the path."""

    def edit(change: Callable[[dict[str, Any]], object]) -> Path:
        data = json.loads(tiny_file.read_text(encoding="utf-8"))
        change(data)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return edit
