"""llm, the command: a model from extra-openai-models.yaml, streamed and not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main(url: str, model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "extra-openai-models.yaml").write_text(
            f"- model_id: here\n  model_name: {model}\n  api_base: {url}/v1\n"
        )
        command = [str(Path(sys.executable).with_name("llm")), "-m", "here", "Hello", "-o", "max_tokens", "100"]
        said = ""
        for options in ([], ["--no-stream"]) * 2:
            done = subprocess.run(
                [*command, *options], env={**os.environ, "LLM_USER_PATH": folder}, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            said += done.stdout.strip()
        assert said  # of four answers some have more than thoughts


main(*sys.argv[1:])
