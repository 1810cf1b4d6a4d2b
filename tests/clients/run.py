"""Real clients against `pelagos serve`, each in its own words: `make test-clients`.

Serves the built-in model on a free port of this machine, and runs every check_* file in the clients' own environment.
What cannot be run is named; ends with 1 if a check fails.
"""

import argparse
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
START_SECONDS = 60.0
CHECK_SECONDS = 120.0
NAME = "pelagos-test"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path, help="the clients' environment; node_modules lies beside its bin")
    parser.add_argument("--node", default=None, help="Node.js; without it its clients are skipped")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pelagos", "serve", "nano", "--port", "0", "--name", NAME]
        command += ["--ram-cache", "0.25", "--store-dir", str(folder / "store")]
        with (
            (folder / "log").open("w") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            try:
                url = _url(process)
                if url is None:
                    print(f"the server did not start:\n{(folder / 'log').read_text()}")
                    return 1
                failed = [check for check in sorted(HERE.glob("check_*")) if not _run(check, url, options)]
            finally:
                process.terminate()
                process.wait()
        if failed:
            print(f"the server's log ends with:\n{(folder / 'log').read_text()[-3000:]}")
    return 1 if failed else 0


def _url(process: "subprocess.Popen[str]") -> str | None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    found = re.search(r"http://\S+:\d+", process.stdout.readline() if ready else "")
    return found[0] if found else None


def _run(check: Path, url: str, options: argparse.Namespace) -> bool:
    """Whether a check holds, or could not be run at all."""
    environment = options.environment.absolute()
    if check.suffix == ".mjs":
        if not options.node or not (environment / "node_modules").is_dir():
            print(f"SKIPPED {check.name}: there is no Node.js with npm here")
            return True
        command = [options.node, str(check), url, NAME, str(environment)]
    else:
        command = [str(environment / "bin" / "python"), str(check), url, NAME]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_SECONDS)
        is_right, said = done.returncode == 0, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        is_right, said = False, f"it took more than {CHECK_SECONDS:.0f} s"
    print(f"{'ok' if is_right else 'FAILED':8}{check.name} {time.monotonic() - started:.1f} s", flush=True)
    if not is_right:
        print(said[-4000:])
    return is_right


if __name__ == "__main__":
    sys.exit(main())
