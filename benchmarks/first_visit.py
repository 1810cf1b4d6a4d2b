"""What a newcomer waits for: from nothing to an answer in the chat page.

    python benchmarks/first_visit.py [--port 8123] [--question TEXT] [--screenshot FILE.png] [--out FILE.jsonl]

Clones this repository into an empty folder, with an empty home and no package cache, runs `make serve` there, opens the
page in Chromium without a window, asks, and waits for the whole answer. What pip is told of where packages come from is
kept. Prints the seconds from the start until the clone, the server's page and the answer were there.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/serving_page"))

from browser import Browser  # noqa: E402

PIP_CONFIG = Path.home() / ".config/pip/pip.conf"
DONE = "document.querySelector('.answer:last-child .figures')"
MAX_SECONDS = 1200.0


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Raises RuntimeError if the server does not come, or its process ends."""
    end = time.monotonic() + MAX_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start: make serve ended with {process.poll()}")


def visit(url: str, folder: Path, question: str, screenshot: Path | None) -> tuple[str, str]:
    """The answer in the page, and the line of figures below it."""
    with Browser(folder) as browser:
        browser.open(url)
        browser.run("document.querySelector('#prompt').focus()")
        browser.type(question)
        browser.key("Enter")
        browser.wait(DONE, 60.0)
        answer = browser.run("document.querySelector('.answer:last-child .body').innerText.trim()")
        figures = browser.run(f"{DONE}.innerText")
        if screenshot is not None:
            browser.screenshot(screenshot)
        if browser.problems:
            raise RuntimeError(f"the page has problems: {browser.problems}")
    return answer, figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clone, home = folder / "pelagos", folder / "home"
        home.mkdir()
        environment = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "LC_")) or k in ("PATH", "LANG")}
        environment |= {"HOME": str(home), "PIP_NO_CACHE_DIR": "1"}
        if PIP_CONFIG.is_file():
            environment["PIP_CONFIG_FILE"] = str(PIP_CONFIG)
        started = time.perf_counter()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        seconds = {"clone": time.perf_counter() - started}
        url = f"http://127.0.0.1:{options.port}"
        command = ["make", "serve", f"ARGS=--port {options.port}"]
        with subprocess.Popen(command, cwd=clone, env=environment, start_new_session=True) as process:
            try:
                wait_for(url, process)
                seconds["page"] = time.perf_counter() - started
                answer, figures = visit(url, folder / "browser", options.question, options.screenshot)
                seconds["answer"] = time.perf_counter() - started
            finally:
                os.killpg(process.pid, signal.SIGTERM)
        return {
            "date": datetime.date.today().isoformat(),
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "question": options.question,
            "answer": answer,
            "figures": figures,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--question", default="Hello")
    parser.add_argument("--screenshot", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None, help="append the report to this file")
    options = parser.parse_args()
    report = measure(options)
    print(json.dumps(report, ensure_ascii=False))
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
