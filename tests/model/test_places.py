"""Which model a name means."""

from pathlib import Path

import huggingface_hub
import pytest

from pelagos.common.errors import ResourceError, UsageError
from pelagos.model import places
from pelagos.model.places import model_place


@pytest.fixture
def built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "assets" / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(places, "BUILT_IN", folder.parent)
    return folder


def test_a_folder_goes_first(built_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_place("small") == str(built_in)
    assert model_place("tiny") == "tiny"
    monkeypatch.chdir(tmp_path)
    for name in ("small", "tiny", "owner/model"):
        (tmp_path / name).mkdir(parents=True)
        assert model_place(name) == name


def test_a_hub_id_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or "/somewhere")
    assert model_place("owner/model-1.5") == "/somewhere"
    assert asked == [(("owner/model-1.5",), {"allow_patterns": ["*.safetensors", "*.json", "*.txt", "*.md"]})]


def test_what_is_not_there_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> str:
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(
        ResourceError, match=r"owner/model is no folder, and the hub did not give it: no route to the hub$"
    ):
        model_place("owner/model")
    for name in ("no-such-model", "a/b/c", "../no-such-folder"):
        with pytest.raises(UsageError, match="model must be a checkpoint folder, owner/name on the hub, or one of"):
            model_place(name)
