"""Conversions that are killed at a chosen moment, for test_convert.py. Run as a program: it forks, so it should have no
threads, and it prints one line of JSON.

usage: killed_conversions.py SRC WORK TARGET MAX_SHARD_BYTES SEED
"""

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pelagos.model.convert import convert


class Clock:
    """Counts the moments of a conversion and, at the one it was set to, kills the process as a power cut would."""

    def __init__(self, deadline: int | None) -> None:
        self.time = 0
        self.deadline = deadline

    def tick(self, *_: object) -> None:
        self.time += 1
        if self.time == self.deadline:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            result = function(*args, **kwargs)
            self.tick()
            return result

        return wrapped


def run(src: Path, dst: Path, options: tuple[str, int], deadline: int | None) -> dict[str, int]:
    """Convert in a child process; its exit: how often the clock ticked and how many files were there already."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        clock = Clock(deadline)
        os.replace = clock.around(os.replace)
        os.unlink = clock.around(os.unlink)
        os.fsync = lambda _: None  # a kill loses nothing that was written, and this is what takes the time
        report = convert(src, dst, options[0], max_shard_bytes=options[1], progress=clock.tick)
        os.write(write, json.dumps({"ticks": clock.time, "resumed": report.num_resumed_files}).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, f"the conversion failed: {status}"
    return json.loads(answer) if answer else {}


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def is_complete(folder: Path) -> bool:
    """Whether the folder is a checkpoint and nothing is left to do."""
    return (folder / "config.json").exists() and not (folder / "convert-progress.json").exists()


def main() -> None:
    torch.set_num_threads(1)
    src, work = Path(sys.argv[1]), Path(sys.argv[2])
    options = (sys.argv[3], int(sys.argv[4]))
    draw = random.Random(int(sys.argv[5]))
    num_ticks = run(src, work / "whole", options, None)["ticks"]
    expected = content(work / "whole")
    resumed, wrong = 0, []
    moments = [*draw.sample(range(1, num_ticks - 3), 12), *range(num_ticks - 3, num_ticks + 1)]
    for moment in moments:
        dst = work / "killed"
        assert run(src, dst, options, moment) == {}
        if draw.random() < 0.5 and not is_complete(dst):
            run(src, dst, options, draw.randint(1, num_ticks))  # killed again, unless it was nearly done
        if not is_complete(dst):
            resumed += run(src, dst, options, None)["resumed"]
        if content(dst) != expected:
            wrong.append(moment)
        shutil.rmtree(dst)
    print(json.dumps({"ticks": num_ticks, "files": len(expected), "resumed": resumed, "wrong": wrong}))


if __name__ == "__main__":
    main()
