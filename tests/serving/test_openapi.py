"""The description of the API is that of the API: its paths, its methods, its fields."""

import json
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest
from live_server import Live
from starlette.routing import Route

from pelagos.serving import app, chat, completions, messages, responses, texts
from pelagos.serving.fields import FieldTable

DOCUMENT = json.loads((Path(app.__file__).parent / "openapi.json").read_text(encoding="utf-8"))
SCHEMAS = DOCUMENT["components"]["schemas"]


def test_paths_and_methods() -> None:
    """Below one prefix; the others have the same."""
    described = {(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods}
    real = set()
    for route in app.api_routes():
        assert isinstance(route, Route)
        for method in set(route.methods or ()) - {"HEAD"}:
            real.add((route.path.replace("{name:path}", "{name}"), method))
    others = tuple(prefix for prefix in app.PREFIXES if prefix not in ("", "/v1"))
    bare = {path.removeprefix("/v1") for path, _ in described if path.startswith("/v1/") and "/requests" not in path}
    assert {(path, method) for path, method in real if not path.startswith(others) and path not in bare} == described


@pytest.mark.parametrize(
    ("schema", "tables"),
    [
        ("ChatRequest", [chat.TABLE]),
        ("CompletionRequest", [completions.TABLE]),
        ("MessagesRequest", [messages.TABLE]),
        ("CountRequest", [messages.COUNT_TABLE]),
        ("ResponseRequest", [responses.TABLE]),
        ("TokenizeRequest", [texts.TOKENIZE]),
        ("DetokenizeRequest", [texts.DETOKENIZE]),
    ],
)
def test_fields(schema: str, tables: Sequence[FieldTable]) -> None:
    known = {name for table in tables for name in (*table.acts, *table.only, *table.hints)}
    assert set(SCHEMAS[schema]["properties"]) == known


def test_every_schema_is_one_and_every_reference_leads_somewhere(live: Live) -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for name in set(json.dumps(DOCUMENT).split('"#/components/schemas/')[1:]):
        assert name.split('"')[0] in SCHEMAS
    assert live.http.get("/openapi.json").json() == DOCUMENT
    error = live.chat(temperature=9).json()
    jsonschema.validate(error, SCHEMAS["Error"])
    error = live.http.post("/v1/messages", json={}).json()
    jsonschema.validate(error, SCHEMAS["AnthropicError"])
