"""How long a checkpoint takes to open, and how much memory generating from it takes.

    python benchmarks/open_slice.py DIR [--tokens 4]

Prints one JSON line: seconds to open (config, index, all headers and checks, model built on memory-mapped weights),
seconds per token, and the largest resident memory against the bytes of the files. Resident memory counts mapped file
pages too.
"""

import argparse
import json
import resource
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=4, help="tokens to generate")
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the prompt")
    options = parser.parse_args()
    from pelagos.model.transformer import Model

    begin = time.perf_counter()
    model = Model.load(options.folder)
    opened = time.perf_counter()
    state = model.new_state()
    logits = model.step(list(range(options.prompt)), state, num_logits=1)
    first = time.perf_counter()
    tokens = [int(logits[-1].argmax())]
    for _ in range(options.tokens - 1):
        tokens.append(int(model.step(tokens[-1:], state)[-1].argmax()))
    done = time.perf_counter()
    file_bytes = sum(path.stat().st_size for path in options.folder.glob("*.safetensors"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "open_s": round(opened - begin, 2),
        "prompt_tokens": options.prompt,
        "prompt_s": round(first - opened, 2),
        "s_per_token": round((done - first) / max(options.tokens - 1, 1), 2),
        "tokens": tokens,
        "file_bytes": file_bytes,
        "peak_resident_bytes": peak,
        "resident_share_of_files": round(peak / file_bytes, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
