"""The golden files of the chat tests and the script that made them: tests and files come from the same code."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent.parent / "golden" / "chat"


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chat_golden_regenerate", FOLDER / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_golden(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


regenerate = _load_script()
