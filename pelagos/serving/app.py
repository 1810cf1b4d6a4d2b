"""The application: which path leads where."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pelagos.serving import info, responses
from pelagos.serving.auth import Keys
from pelagos.serving.chat import prepare_chat
from pelagos.serving.completions import prepare_completion
from pelagos.serving.errors import ApiError
from pelagos.serving.limits import parse_body, read_body
from pelagos.serving.messages import count_tokens, prepare_messages
from pelagos.serving.middleware import Entrance
from pelagos.serving.page import load_page, page_routes
from pelagos.serving.respond import Prepared, respond
from pelagos.serving.state import Call, Server
from pelagos.serving.texts import detokenize, render, tokenize

Prepare = Callable[[Server, Call, dict[str, Any]], Prepared]
PREFIXES = ("/v1", "", "/anthropic/v1", "/anthropic", "/beta/v1", "/beta")


def make_app(server: Server) -> Starlette:
    """The ASGI application for a server. Raises ConfigError for a key file that cannot be used."""
    config = server.config
    keys = None if config.api_key_file is None else Keys(config.api_key_file)
    page = load_page()
    entrance = Middleware(Entrance, server=server, keys=keys, tracer=_tracer(config.trace), page_paths=frozenset(page))
    middleware = [entrance]
    if config.cors_origins:
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=config.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            ),
        )
    app = Starlette(routes=[*api_routes(), *page_routes(page)], middleware=middleware, lifespan=_lifespan)
    app.state.server = server
    app.add_exception_handler(HTTPException, _http_error)
    return app


class Generate:
    """An endpoint whose answer the engine makes: reads the body, prepares it in a thread, responds."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http = Request(scope, receive, send)
        server, call = server_of(http), call_of(http)
        server.check_ready()
        data = await read_body(http, server.config.limits.max_body_bytes)
        prepared = await server.in_thread(lambda: self._prepare(server, call, parse_body(data)))
        app = await respond(server, call, http, prepared)
        await app(scope, receive, send)


class Compute:
    """An endpoint that needs no engine: a function from a body to what is sent, run in a thread."""

    def __init__(self, work: Callable[[Server, Call, dict[str, Any]], dict[str, Any]]) -> None:
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http = Request(scope, receive, send)
        server, call = server_of(http), call_of(http)
        data = await read_body(http, server.config.limits.max_body_bytes)
        result = await server.in_thread(lambda: self._work(server, call, parse_body(data)))
        await JSONResponse(result)(scope, receive, send)


def server_of(http: Request) -> Server:
    server: Server = http.app.state.server
    return server


def call_of(http: Request) -> Call:
    call: Call = http.scope["call"]
    return call


def api_routes() -> list[BaseRoute]:
    """Every path of the API, below each prefix."""
    routes: list[BaseRoute] = []
    for prefix in PREFIXES:
        routes.append(_post(f"{prefix}/chat/completions", Generate(prepare_chat)))
        routes.append(_post(f"{prefix}/completions", Generate(prepare_completion)))
        routes.append(_post(f"{prefix}/messages", Generate(prepare_messages)))
        routes.append(_post(f"{prefix}/messages/count_tokens", Compute(count_tokens)))
        routes.append(_post(f"{prefix}/responses", responses.CreateResponse()))
        routes.append(_get(f"{prefix}/responses/{{id}}", responses.get_response))
        routes.append(_get(f"{prefix}/responses/{{id}}/input_items", responses.response_input))
        routes.append(Route(f"{prefix}/responses/{{id}}", responses.delete_response, methods=["DELETE"]))
        routes.append(_post(f"{prefix}/responses/{{id}}/cancel", responses.cancel_response))
        routes.append(_get(f"{prefix}/models", info.models))
        routes.append(_get(f"{prefix}/models/{{name:path}}", info.model))
    return [
        *routes,
        _post("/tokenize", Compute(tokenize)),
        _post("/detokenize", Compute(detokenize)),
        _post("/render", Compute(render)),
        _get("/v1/requests", info.requests),
        _post("/v1/requests/{id}/cancel", info.cancel_request),
        _get("/metrics", info.metrics),
        _get("/health", info.health),
        _get("/ready", info.ready),
        _get("/openapi.json", info.openapi),
    ]


def _get(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(path, endpoint, methods=["GET"])


def _post(path: str, endpoint: ASGIApp | Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(path, endpoint, methods=["POST"])


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    yield
    app.state.server.close()


async def _http_error(http: Request, error: Exception) -> Response:
    """No such path, or not with this method: in the caller's shape like any other error."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        raise ApiError(405, f"{http.url.path} does not take {http.method}")
    raise ApiError(error.status_code, f"there is no {http.url.path} here; /openapi.json lists what there is")


def _tracer(wanted: bool) -> Any:
    if not wanted:
        return None
    from opentelemetry import trace

    return trace.get_tracer("pelagos")
