import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelagos.common.errors import ResourceError, UsageError
from pelagos.common.files import FolderLock, atomic_path, disk_free, parse_json, read_json, sha256_file, write_atomic


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that prints one line when it is ready and then waits for its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


# --- atomic writes ---


@pytest.mark.parametrize("fsync", [False, True])
def test_write_atomic_writes_bytes_and_text(tmp_path: Path, fsync: bool) -> None:
    write_atomic(tmp_path / "a", b"\x00\xff", fsync=fsync)
    write_atomic(tmp_path / "b", "é\r\n", fsync=fsync)
    write_atomic(tmp_path / "a", b"new", fsync=fsync)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "b").read_bytes() == "é\r\n".encode()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def write_half(target: Path, error: BaseException) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert target.read_text() == "old"
        raise error


def test_nothing_changes_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(target, KeyboardInterrupt())
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_nothing_changes_when_the_process_is_killed(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    code = """
import sys, pathlib
from pelagos.common.files import atomic_path
with atomic_path(pathlib.Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    input()
"""
    kill(start(code, target))
    assert target.read_text() == "old"
    [leftover] = [name for name in os.listdir(tmp_path) if name != "a"]
    assert leftover.startswith(".")
    assert leftover.endswith(".tmp")


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "a"
    contents = [bytes([value]) * 100_000 for value in range(2)]
    write_atomic(target, contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomic(target, content)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = {target.read_bytes() for _ in range(300)}
    stop.set()
    for writer in writers:
        writer.join()
    assert seen <= set(contents)
    assert os.listdir(tmp_path) == ["a"]


def test_fsync_comes_before_the_rename_and_then_for_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace
    target = tmp_path / "a"

    def record_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def record_replace(source: Path, destination: Path) -> None:
        calls.append(("replace", os.stat(source).st_ino))
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_atomic(target, b"x", fsync=True)
    file, folder = target.stat().st_ino, tmp_path.stat().st_ino
    assert calls == [("fsync", file), ("replace", file), ("fsync", folder)]


def test_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    name = "n" * 255
    write_atomic(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("target", ["missing/a", "file/a", "folder", "folder/.", "n" * 256])
def test_an_unusable_place_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be written: ") as caught:
        write_atomic(tmp_path / target, b"x")
    assert str(tmp_path / target) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_resource_error(tmp_path: Path, code: int) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(ResourceError, match="no space left"):
        write_half(target, OSError(code, os.strerror(code)))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_errors_about_other_files_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_path(tmp_path / "a"):
        (tmp_path / "elsewhere").read_bytes()
    assert os.listdir(tmp_path) == []


# --- locks ---

HOLD = """
import sys, pathlib
from pelagos.common.files import FolderLock
with FolderLock(pathlib.Path(sys.argv[1])):
    print("ready", flush=True)
    input()
"""


def test_one_lock_at_a_time_in_one_process(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with lock, pytest.raises(ResourceError, match=f"{tmp_path} is in use by process {os.getpid()}: "):
        FolderLock(tmp_path).__enter__()
    with lock, FolderLock(tmp_path.parent):
        pass


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path: Path) -> None:
    holder = start(HOLD, tmp_path)
    try:
        with pytest.raises(ResourceError, match=f"is in use by process {holder.pid}: stop it or"):
            FolderLock(tmp_path).__enter__()
    finally:
        kill(holder)
    with FolderLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_lock_is_released_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), FolderLock(tmp_path):
        _ = 1 / 0
    with FolderLock(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap/.lock").symlink_to(tmp_path / "file")
    for name in ("missing", "file", "trap"):
        with pytest.raises(UsageError, match=f"{tmp_path / name} cannot be locked: "):
            FolderLock(tmp_path / name).__enter__()
    assert (tmp_path / "file").read_text() == "precious"


# --- JSON ---

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "value.json"


@given(value=JSON_VALUES, ascii_only=st.booleans())
def test_any_json_value_is_read_back(value: object, ascii_only: bool, scratch: Path) -> None:
    scratch.write_text(json.dumps(value, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass")
    assert read_json(scratch, 1 << 20) == value


@given(data=st.binary(max_size=30) | st.text(alphabet='[]{},:"\\u01-+.eE tfn', max_size=30).map(str.encode))
def test_any_bytes_give_a_value_or_a_usage_error(data: bytes, scratch: Path) -> None:
    scratch.write_bytes(data)
    try:
        value = read_json(scratch, 1 << 20)
    except UsageError:
        return
    assert value == json.loads(data)


BROKEN = {
    b"": "must be JSON, but is not from line 1, column 1 on",
    b"\n{]": "must be JSON, but is not from line 2, column 2 on",
    b"{} {}": "Extra data",
    b'\xef\xbb\xbf{"a": 1}': "must be JSON",
    b'["\xff"]': "must be UTF-8 text, but byte 2 is not",
    b'{"a": {"b": 1, "c": 2, "b": 3}}': "key 'b' stands twice in one object",
    b"[NaN]": "NaN is not a JSON number",
    b"[-Infinity]": "-Infinity is not a JSON number",
    b"[1e999]": "1e999 is too large for a float64",
    b"[" + b"9" * 5000 + b"]": "must be JSON with unique keys and finite numbers: ",
    b"[" * 101 + b"]" * 101: "must nest lists and objects at most 100 deep",
    b'{"a":' * 101 + b"1" + b"}" * 101: "must nest lists and objects at most 100 deep",
    b'[{"a":' * 1000 + b"1" + b"}]" * 1000: "must nest lists and objects at most 100 deep",
    b"[" * 400_000: "must nest lists and objects at most 100 deep",
}


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_broken_json_says_what_is_wrong_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        read_json(path, 1 << 20)
    message = str(caught.value)
    assert message.startswith(f"{path} must ")
    assert BROKEN[data] in message
    assert len(message) < len(str(path)) + 200
    assert "\n" not in message


def test_json_that_is_no_file_is_called_what_the_caller_says() -> None:
    assert parse_json(b'{"a": [1]}', "header") == {"a": [1]}
    with pytest.raises(UsageError, match=r"^header of model\.safetensors must be JSON"):
        parse_json(b"{", "header of model.safetensors")


def test_a_hundred_levels_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text('[{"a":' * 50 + "1" + "}]" * 50)
    value = read_json(path, 1000)
    for _ in range(50):
        value = value[0]["a"]
    assert value == 1


def test_size_is_bounded_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text("[1, 2]")
    assert read_json(path, 6) == [1, 2]
    with pytest.raises(UsageError, match="must have at most 5 bytes"):
        read_json(path, 5)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file larger than memory
    with pytest.raises(UsageError, match="must have at most 1,000 bytes"):
        read_json(path, 1000)


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe must be a file"):
        read_json(tmp_path / "pipe", 100)
    with pytest.raises(UsageError, match="must be a file"):
        read_json(tmp_path, 100)
    with pytest.raises(UsageError, match="missing cannot be read: No such file"):
        read_json(tmp_path / "missing", 100)


# --- checksum and space ---


def test_sha256_of_the_published_example(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    data = bytes(range(256)) * 5000
    (tmp_path / "b").write_bytes(data)
    assert sha256_file(tmp_path / "b") == hashlib.sha256(data).hexdigest()


def test_disk_free_also_for_a_place_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(Path(path))
        return SimpleNamespace(free=40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.chdir(tmp_path)
    assert disk_free(tmp_path) == disk_free(tmp_path / "a/b/c") == disk_free(Path("later/x")) == 40
    assert asked == [tmp_path] * 3
