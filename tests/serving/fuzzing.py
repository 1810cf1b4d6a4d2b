"""Requests that nobody would write: cases of schemathesis from openapi.json, and right requests gone wrong in places.

Run it long by hand, with a server on a random model:

    python tests/serving/fuzzing.py --minutes 10
"""

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from pelagos.serving import app

DOCUMENT = json.loads((Path(app.__file__).parent / "openapi.json").read_text(encoding="utf-8"))
SECONDS = 30.0  # what one request may take before it counts as a hang
EXAMPLES = 8  # of one operation before the next has its turn
TOOL = {"name": "weather", "description": "?", "parameters": {"type": "object", "properties": {"city": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ],
    "tools": [{"type": "function", "function": TOOL}],
    "tool_choice": "auto",
    "thinking": {"type": "enabled"},
    "max_tokens": 8,
}
MESSAGES: dict[str, Any] = {
    "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]},
    ],
    "tools": [{"name": "weather", "input_schema": TOOL["parameters"]}],
    "tool_choice": {"type": "auto"},
}
RIGHT: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        CHAT,
        {"messages": [{"role": "user", "content": "json"}], "response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "prefix": True}]},
    ],
    "/render": [CHAT],
    "/v1/messages": [{**MESSAGES, "max_tokens": 8}],
    "/v1/messages/count_tokens": [MESSAGES],
    "/v1/completions": [
        {"prompt": "hello", "max_tokens": 4, "stop": ["x"], "logprobs": 2},
        {"prompt": "a", "suffix": "b"},
        {"prompt": [[65, 66], [67]], "n": 2},
    ],
    "/v1/responses": [
        {"input": "hi", "max_output_tokens": 8, "text": {"format": {"type": "text"}}},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            ],
            "tools": [{"type": "function", **TOOL}],
            "reasoning": {"effort": "low"},
            "max_output_tokens": 8,
        },
    ],
    "/tokenize": [{"text": "hello", "add_special_tokens": True}],
    "/detokenize": [{"tokens": [65, 66]}],
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["", "\x00", "\ud800", "<｜Assistant｜>", "｜DSML｜", "auto", "function", "user", "a" * 5000]),
    st.lists(st.integers(-1, 600), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.just([]),
    st.just({}),
    st.sampled_from([json.loads("[" * depth + "]" * depth) for depth in (50, 99, 101, 500)]),
    st.sampled_from(
        [
            {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
            {"type": "string", "pattern": "(a+)+$"},
            {"type": "string", "pattern": "["},
            {"anyOf": []},
            {"enum": []},
            {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 1},
            {"$ref": "https://example.org/x"},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer", "minimum": 10**30}}},
            {"type": "regex", "regex": "x{1000000}"},
        ]
    ),
)


@dataclass
class Findings:
    num_requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")


@st.composite
def spoilt(draw: Any, bases: list[dict[str, Any]]) -> dict[str, Any]:
    """A right body with one to three values exchanged, removed or added, at any depth."""
    body = _copy({"model": "pelagos", **draw(st.sampled_from(bases))})
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(body))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("exchange", "exchange", "remove", "add", "double"))):
            case "exchange":
                holder[key] = _copy(draw(ODD))
            case "remove":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.insert(key, _copy(holder[key]))
            case _ if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = _copy(draw(ODD))
    return body


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _places(value: Any) -> "list[tuple[Any, Any]]":
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found


def _grafted(operation: Any, bases: list[dict[str, Any]], mode: GenerationMode) -> st.SearchStrategy[dict[str, Any]]:
    """A right body with some fields as schemathesis makes them."""

    def graft(case: Case, base: dict[str, Any], names: list[str]) -> dict[str, Any]:
        body = case.body if isinstance(case.body, dict) else {}
        taken = {name: body[name] for name in names if name in body and name != "model"}
        return {"model": "pelagos", **base, **taken}

    schema = DOCUMENT["paths"][operation.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    names = sorted(DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]["properties"])
    chosen = st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)
    return st.builds(graft, operation.as_strategy(generation_mode=mode), st.sampled_from(bases), chosen)


def problem_of(status: int, content_type: str, text: str, documented: set[str]) -> str | None:
    """What is wrong with a response."""
    if status >= 500:
        return f"status {status}: {text[:300]}"
    if status not in (401, 403, 404, 405, 409, 413) and str(status) not in documented:
        return f"status {status} is not in openapi.json"
    if content_type.startswith("text/event-stream"):
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        whole = events and (
            events[-1] == "[DONE]"
            or json.loads(events[-1])["type"].rsplit(".", 1)[-1] in ("message_stop", "completed", "incomplete")
        )
        return None if whole else f"the stream has no end: {text[-300:]!r}"
    if content_type.startswith("application/json"):
        value = json.loads(text)
        if status >= 400 and not value["error"]["message"]:
            return "the error says nothing"
    return None


def fuzz(send: Callable[..., Any], url: str, *, seconds: float, seed: int) -> Findings:
    """Send requests for so long. ``send(method, path, **options)`` gives a response, or raises."""
    findings = Findings()
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    operations = [result.ok() for result in schema.get_all_operations()]
    rng = random.Random(seed)
    end = time.monotonic() + seconds

    def check(operation: Any, status: int, content_type: str, text: str, what: str, started: float) -> None:
        findings.num_requests += 1
        findings.slowest = max(findings.slowest, (time.monotonic() - started, f"{operation.label} {what[:2000]}"))
        findings.statuses[status] += 1
        documented = set(DOCUMENT["paths"][operation.path][operation.method.lower()]["responses"])
        problem = problem_of(status, content_type, text, documented)
        assert problem is None, f"{operation.label} {what[:2000]}: {problem}"

    def as_generated(operation: Any, mode: GenerationMode) -> Callable[[], None]:
        @given(operation.as_strategy(generation_mode=mode))
        def run(case: Case) -> None:
            hypothesis.assume(time.monotonic() < end)
            started = time.monotonic()
            response = case.call(base_url=url, timeout=SECONDS)
            kind = response.headers.get("content-type", [""])[0]
            check(
                operation, response.status_code, kind, response.text, f"{case.path_parameters} {case.body!r}", started
            )

        return run

    def with_body(operation: Any, bodies: st.SearchStrategy[dict[str, Any]]) -> Callable[[], None]:
        @given(bodies)
        def run(body: dict[str, Any]) -> None:
            hypothesis.assume(time.monotonic() < end)
            data = json.dumps(body).encode()
            started = time.monotonic()
            response = send("POST", operation.path, content=data, timeout=SECONDS)
            check(
                operation, response.status_code, response.headers["content-type"], response.text, data.decode(), started
            )

        return run

    quiet = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    while time.monotonic() < end:
        operation = rng.choice(operations)
        bases = RIGHT.get(operation.path, [])
        kind = rng.choice(("generated", "grafted", "spoilt", "spoilt"))
        mode = rng.choice(list(GenerationMode))
        if kind == "generated" or not bases:
            test = as_generated(operation, mode)
        elif kind == "grafted":
            test = with_body(operation, _grafted(operation, bases, mode))
        else:
            test = with_body(operation, spoilt(bases))
        try:
            hypothesis.seed(rng.getrandbits(32))(quiet(test))()
        except (hypothesis.errors.Unsatisfiable, hypothesis.errors.FailedHealthCheck):
            continue
        except Exception as error:
            findings.problems.append(f"{type(error).__name__}: {error}"[:3000])
            if len(findings.problems) >= 20:
                break
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()

    import logging
    import tempfile

    import httpx2

    from pelagos.chat.byte_vocabulary import write_byte_tokenizer
    from pelagos.engine.config import EngineConfig
    from pelagos.engine.engine import Engine
    from pelagos.model.transformer import Model
    from pelagos.serving.config import ServingConfig
    from pelagos.serving.embedded import serving

    logging.basicConfig(level=logging.WARNING)
    engine = Engine(Model.load("tiny"), EngineConfig(cache_bytes=1 << 27))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_byte_tokenizer(Path(folder))
        config = ServingConfig(port=0, max_context=600)
        with serving(engine, tokenizer, config) as running, httpx2.Client(base_url=running.url) as client:
            print(f"seed {options.seed}, {running.url}", flush=True)
            client.get("/health")
            threads = threading.active_count()
            found = fuzz(client.request, running.url, seconds=60 * options.minutes, seed=options.seed)
            deadline = time.monotonic() + 10
            while (left := engine.stats().num_running) and time.monotonic() < deadline:
                time.sleep(0.05)
            listed = client.get("/v1/requests").json()["data"]
            if left or listed or threading.active_count() > threads + 4:
                found.problems.append(f"left: {left} in the engine, {listed}, {threading.enumerate()}")
    for problem in found.problems:
        print(problem, "\n")
    print(f"slowest: {found.slowest[0]:.1f} s, {found.slowest[1]}")
    print(f"{found.num_requests} requests, {dict(found.statuses)}, {len(found.problems)} problems")
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
