"""kill -9 under load, again and again: the server starts again at once, and what it had stored is there, whole.

    python benchmarks/kill.py [--times 100] [--clients 8] [--seed 0] [--out FILE.jsonl]

`pelagos serve tiny --store-dir DIR` is started, asked for responses by several clients at once, killed after a random
part of a second, and started again. After each start: it is ready, it has logged no error, and every response that a
client had received before is given back as it was. A response that was running in the background when the server died
says that it failed, or is whole. Ends with 1 if one of these does not hold.
"""

import argparse
import datetime
import http.client
import json
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from pelagos.chat.byte_vocabulary import write_byte_tokenizer
from pelagos.common.device import describe_machine

START_SECONDS = 60.0
REQUEST_SECONDS = 30.0
MAX_LIFE = 0.8  # seconds under load before the kill


class Served:
    """A server process. ``kill`` it, or leave the block."""

    def __init__(self, folder: Path) -> None:
        """Raises RuntimeError if it does not start."""
        command = [sys.executable, "-m", "pelagos", "serve", "tiny", "--tokenizer", str(folder), "--port", "0"]
        command += ["--store-dir", str(folder / "store"), "--ram-cache", "0.05", "--threads", "1"]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        started = time.monotonic()
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        said = self.process.stdout.readline() if ready else ""
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        if found is None:
            self.kill()
            raise RuntimeError(f"the server did not start: {said}{self.log.read_text()}")
        self.port = int(found[1])
        while self.ask("GET", "/ready")[0] != 200:
            if time.monotonic() - started > START_SECONDS:
                self.kill()
                raise RuntimeError("the server did not become ready")
            time.sleep(0.01)
        self.seconds_to_start = time.monotonic() - started

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body of a response, 0 and None if there was none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()


class Load:
    """Clients that ask for responses until they are told to stop. ``received`` has what came whole, ``begun`` the ids
    of those in the background."""

    def __init__(self, served: Served, num_clients: int, seed: str) -> None:
        self.received: dict[str, Any] = {}
        self.begun: set[str] = set()
        self.unexpected: list[str] = []
        self._served = served
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(random.Random(f"{seed} {number}"),), daemon=True)
            for number in range(num_clients)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(REQUEST_SECONDS)

    def _client(self, rng: random.Random) -> None:
        while not self._stopped.is_set():
            body = {"model": "tiny", "input": "x" * rng.randrange(1, 300), "max_output_tokens": rng.choice((1, 8, 60))}
            background = rng.random() < 0.2
            status, response = self._served.ask("POST", "/v1/responses", {**body, "background": background})
            if status == 200 and background:
                self.begun.add(response["id"])
            elif status == 200:
                self.received[response["id"]] = response
            elif status:
                self.unexpected.append(f"{status}: {response}")
            else:
                return  # the server is gone


def check(served: Served, received: dict[str, Any], begun: set[str]) -> list[str]:
    """What is wrong with the server after a start."""
    wrong = []
    for response_id, response in received.items():
        status, found = served.ask("GET", f"/v1/responses/{response_id}")
        if status != 200:
            wrong.append(f"{response_id} was received and is gone: {status} {found}")
        elif found != response:
            wrong.append(f"{response_id} is another one now: {found}")
    for response_id in begun:
        status, found = served.ask("GET", f"/v1/responses/{response_id}")
        if status != 200 or found["status"] not in ("completed", "incomplete", "failed"):
            wrong.append(f"{response_id} was begun in the background and is {status} {found}")
    log = served.log.read_text()
    if "ERROR" in log or "Traceback" in log:
        wrong.append(f"the log has an error: {log[-2000:]}")
    return wrong


def run(times: int, num_clients: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill so many times; the report, with ``problems``."""
    write_byte_tokenizer(folder)
    rng = random.Random(seed)
    received: dict[str, Any] = {}
    begun: set[str] = set()
    problems: list[str] = []
    starts = []
    for number in range(times + 1):
        served = Served(folder)
        try:
            starts.append(served.seconds_to_start)
            problems += check(served, received, begun)
            if number == times or problems:
                break
            load = Load(served, num_clients, f"{seed} {number}")
            time.sleep(rng.uniform(0.05, MAX_LIFE))
        finally:
            served.kill()
        load.stop()
        received |= load.received
        begun |= load.begun
        problems += load.unexpected
    store, machine = folder / "store", describe_machine()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": machine.processor.model, "usable_cores": machine.num_usable_cores},
        "kills": len(starts) - 1,
        "responses": len(received),
        "in_background": len(begun),
        "files": sum(1 for _ in store.glob("resp_*.json")),
        "left_over_files": sum(1 for _ in store.rglob(".*.tmp")),
        "seconds_to_start": {"median": sorted(starts)[len(starts) // 2], "max": max(starts)},
        "problems": problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="append the report to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(options.times, options.clients, options.seed, Path(folder))
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(report) + "\n")
    for problem in report["problems"]:
        print("FAILED", problem[:1000])
    print({name: value for name, value in report.items() if name != "problems"})
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
