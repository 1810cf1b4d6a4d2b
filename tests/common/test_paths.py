import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelagos.common.errors import UsageError
from pelagos.common.paths import inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, links within it, links out of it, and a loop; beside it a secret."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("s")
    folder = tmp_path / "model"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards/one").write_text("1")
    for name, target in {
        "near": "shards/one",
        "near_folder": "shards",
        "out": "../secret/key",
        "out_folder": "../secret",
        "out_absolute": str(tmp_path / "secret"),
        "out_missing": "../nothing",
        "loop": "loop",
        "itself": ".",
    }.items():
        (folder / name).symlink_to(target)
    return folder


GOOD = [
    "shards/one",
    "new",
    "new/deep/file",
    "./new",
    "shards//one",
    "near",
    "near_folder/one",
    "a..b",
    "...",
    "~",
    "é",
]
BAD = [
    "",
    ".",
    "./",
    "..",
    "../secret/key",
    "shards/../../secret/key",
    "shards/..",
    "/etc/passwd",
    "//x",
    "a\0b",
    "\ud800",
]
LINKS_OUT = ["out", "out_folder", "out_folder/key", "out_folder/new", "out_absolute/key", "out_missing", "itself"]


@pytest.mark.parametrize("name", GOOD)
def test_a_name_inside_is_joined(folder: Path, name: str) -> None:
    assert inside(folder, name) == folder / name


@pytest.mark.parametrize("name", BAD + LINKS_OUT)
def test_a_name_that_leaves_is_refused_by_name(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"^file name ") as caught:
        inside(folder, name)
    assert repr(name) in str(caught.value)


def test_the_folder_may_be_a_link_or_missing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder)
    assert inside(tmp_path / "alias", "near").read_text() == "1"
    assert inside(tmp_path / "later", "x") == tmp_path / "later/x"


def test_a_relative_folder_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert inside(Path(), "shards/one").read_text() == "1"
    with pytest.raises(UsageError, match="leads out"):
        inside(Path(), "out")


def test_a_link_that_leads_nowhere_stays_inside(folder: Path) -> None:
    assert inside(folder, "loop") == folder / "loop"


def test_links_between_two_folders_pass_under_the_folder_of_both(folder: Path, tmp_path: Path) -> None:
    assert inside(tmp_path, "model/out").read_text() == "s"


def test_a_long_name_gives_a_short_message(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        inside(folder, "/" + "x" * 100_000)
    assert len(str(caught.value)) < 600


PARTS = st.sampled_from(["", ".", "..", "a", "near_folder", "out_folder", "loop", "itself", "shards", "one", "\0", "/"])


@given(parts=st.lists(PARTS | st.text(max_size=3), max_size=6))
def test_what_is_accepted_lies_inside(parts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp() / "property"
    if not base.exists():
        (base / "model/shards").mkdir(parents=True)
        (base / "secret").mkdir()
        (base / "model/near_folder").symlink_to("shards")
        (base / "model/out_folder").symlink_to("../secret")
        (base / "model/loop").symlink_to("loop")
        (base / "model/itself").symlink_to(".")
    try:
        path = inside(base / "model", "/".join(parts))
    except UsageError:
        return
    real = os.path.realpath(path)
    assert real.startswith(os.path.realpath(base / "model") + os.sep)
