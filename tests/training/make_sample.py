"""Makes pelagos/training/sample/*.jsonl from a prepared folder: python tests/training/make_sample.py PREPARED_FOLDER

It takes the training documents of four sources in the order of a hash, 1 to 16 KB each, until a file has its size.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

from pelagos.training.corpus import read_text
from pelagos.training.sources import SAMPLE_FOLDER

# File, the source in the prepared folder, bytes, largest document. networkx is one project with one licence; SQLite,
# WordNet and the World English Bible ask for a notice or nothing.
FILES = (
    ("manual.jsonl", "sqlite-docs", 260_000, 12_000),
    ("story.jsonl", "web-bible", 200_000, 12_000),
    ("words.jsonl", "wordnet", 220_000, 12_000),
    ("code.jsonl", "networkx-code", 200_000, 16_000),
)
UNWANTED = re.compile(r"(?<![\w.~-])/(?:work|root)(?![\w-])|pypi\.|pythonhosted|npmjs|@[\w-]+\.")  # paths, hosts, mail


def main(prepared: Path) -> None:
    for name, source, num_bytes, largest in FILES:
        documents = sorted(
            read_text(prepared / "text" / f"{source}.jsonl"),
            key=lambda document: hashlib.sha256(document.text.encode()).digest(),
        )
        lines, total = [], 0
        for document in documents:
            size = len(document.text.encode())
            if 1000 <= size <= largest and total < num_bytes and not UNWANTED.search(document.text):
                lines.append(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                total += size
        (SAMPLE_FOLDER / name).write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(lines)} documents, {total} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
