"""What the server is and how it does: models, health, readiness, running requests, counters."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pelagos.serving.errors import ApiError
from pelagos.serving.state import Call, Server


async def models(http: Request) -> Response:
    """Every name of the model; one list that OpenAI's and Anthropic's libraries both read."""
    server: Server = http.app.state.server
    entries = [_entry(server, name) for name in server.config.names]
    return JSONResponse(
        {
            "object": "list",
            "data": entries,
            "has_more": False,
            "first_id": entries[0]["id"],
            "last_id": entries[-1]["id"],
        }
    )


async def model(http: Request) -> Response:
    server: Server = http.app.state.server
    name = http.path_params["name"]
    if name not in server.config.names:
        raise ApiError(
            404,
            f"there is no model {name[:100]!r}: the models are {', '.join(server.config.names)}",
            code="model_not_found",
        )
    return JSONResponse(_entry(server, name))


def _entry(server: Server, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "display_name": name,
        "created": server.created,
        "created_at": _date(server.created),
        "owned_by": "pelagos",
        "root": server.config.model_name,
        "context_length": server.context_length,
        "max_model_len": server.context_length,
    }


async def health(http: Request) -> Response:
    """The process lives."""
    return JSONResponse({"status": "ok"})


async def ready(http: Request) -> Response:
    """Whether new requests are taken."""
    server: Server = http.app.state.server
    if server.is_draining:
        return JSONResponse({"status": "draining"}, status_code=503, headers={"retry-after": "5"})
    return JSONResponse({"status": "ready"})


async def openapi(http: Request) -> Response:
    """What this API is, for programs."""
    return Response(Path(__file__).with_name("openapi.json").read_bytes(), media_type="application/json")


async def metrics(http: Request) -> Response:
    server: Server = http.app.state.server
    return Response(server.watch.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def requests(http: Request) -> Response:
    """The requests that run now; with keys, those of the caller's own."""
    server: Server = http.app.state.server
    call: Call = http.scope["call"]
    return JSONResponse({"object": "list", "data": server.watch.running(call.key)})


async def cancel_request(http: Request) -> Response:
    """End a running request of the caller's by its request id."""
    server: Server = http.app.state.server
    call: Call = http.scope["call"]
    flow = server.watch.find(http.path_params["id"], call.key)
    if flow is None:
        raise ApiError(404, f"no request {http.path_params['id'][:100]!r} is running")
    flow.abort()
    return JSONResponse({"id": http.path_params["id"], "cancelled": True})


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
