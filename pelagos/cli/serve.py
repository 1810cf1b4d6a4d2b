"""``pelagos serve``: a model behind the APIs of OpenAI and Anthropic, and the chat page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pelagos.cli.loading import default_temperature, load
from pelagos.cli.options import MODEL_HELP, Device, Threads, use_threads
from pelagos.common import log
from pelagos.common.errors import UsageError
from pelagos.model.places import model_place

if TYPE_CHECKING:
    import socket

    from pelagos.chat.tokenizer import Tokenizer
    from pelagos.model.transformer import Model
    from pelagos.serving.config import ServingConfig

GIB = 1 << 30


def _option(text: str, *flags: str, panel: str, **limits: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, **limits)


ModelName = Annotated[str, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)]
TokenizerFolder = Annotated[
    Path | None, _option("Folder or file of the tokenizer, if MODEL has none.", panel="Model", metavar="PATH")
]
Name = Annotated[str | None, _option("The model's name in the API. Default: that of the folder.", panel="Model")]
Alias = Annotated[list[str], _option("A further name; may be given many times.", panel="Model")]
Host = Annotated[str, _option("Address to listen on; beyond this machine only with keys.", panel="Network")]
Port = Annotated[int, _option("Port to listen on; 0 takes a free one.", panel="Network", min=0, max=65535)]
KeyFile = Annotated[
    Path | None,
    _option("File of API keys, one `name:sha256` a line, read again when it changes.", panel="Network", metavar="FILE"),
]
CorsOrigin = Annotated[
    list[str], _option("A web origin that may call the server; may be given many times.", panel="Network")
]
HttpServer = Annotated[
    Literal["uvicorn", "granian"],
    _option("What speaks HTTP; granian needs the extra granian.", "--server", panel="Network"),
]
Open = Annotated[bool, _option("Open the chat page in a browser.", "--open", panel="Network")]
JsonLogs = Annotated[bool, _option("Log JSON lines.", "--json-logs", panel="Operation")]
Trace = Annotated[
    bool, _option("One OpenTelemetry span for each request; needs the extra trace.", "--trace", panel="Operation")
]
VllmMetrics = Annotated[
    bool, _option("vLLM's names too on /metrics, for dashboards made for it.", "--vllm-metrics", panel="Operation")
]
StoreDir = Annotated[
    Path | None,
    _option("Folder of stored responses. Default: in memory, gone at the end.", panel="Operation", metavar="DIR"),
]
PiecesPerSecond = Annotated[
    float,
    _option(
        "Pieces that all streams send together; tokens that come faster share one.", panel="Operation", min=1, max=1e6
    ),
]
RamCache = Annotated[
    float | None,
    _option("GiB for what the model has read. Default: a quarter of what is free.", panel="Machine", min=0.01),
]
MaxRunning = Annotated[int, _option("Requests worked on at once.", panel="Machine", min=1, max=4096)]
MaxWaiting = Annotated[int, _option("Requests in the queue; more are refused.", panel="Machine", min=1, max=1 << 20)]
Timeout = Annotated[float | None, _option("Seconds that one request may take.", panel="Operation", min=1)]
DrainSeconds = Annotated[
    float, _option("Seconds that running requests have at the end.", panel="Operation", min=0, max=86400)
]


def serve_command(
    model: ModelName = "nano",
    tokenizer: TokenizerFolder = None,
    name: Name = None,
    alias: Alias = [],  # noqa: B006  typer reads it and copies
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    cors_origin: CorsOrigin = [],  # noqa: B006
    http_server: HttpServer = "uvicorn",
    open_page: Open = False,
    json_logs: JsonLogs = False,
    trace: Trace = False,
    vllm_metrics: VllmMetrics = False,
    store_dir: StoreDir = None,
    request_timeout: Timeout = None,
    drain_seconds: DrainSeconds = 30.0,
    pieces_per_second: PiecesPerSecond = 250.0,
    ram_cache: RamCache = None,
    max_running: MaxRunning = 64,
    max_waiting: MaxWaiting = 1024,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Serve a model: chat completions, responses, messages and completions, streamed or not, and a chat page.

    Ctrl-C or SIGTERM ends it: no new requests, running ones have their time, each gets its last event.
    """
    log.configure(json=json_logs)
    model = model_place(model)
    from pelagos.serving.auth import Keys
    from pelagos.serving.config import ServingConfig
    from pelagos.serving.granian_server import check_granian
    from pelagos.serving.server import open_socket
    from pelagos.serving.tracing import configure

    if api_key_file is not None:
        Keys(api_key_file)  # a bad file is found now, not after a model was loaded
    if trace:
        configure()
    if http_server == "granian":
        check_granian()
    config = ServingConfig(
        host=host,
        port=port,
        model_name=name or Path(model).resolve().name,
        aliases=tuple(alias),
        api_key_file=api_key_file,
        cors_origins=tuple(cors_origin),
        trace=trace,
        vllm_metrics=vllm_metrics,
        store_dir=store_dir,
        request_timeout=request_timeout,
        drain_seconds=drain_seconds,
        pieces_per_second=pieces_per_second,
        default_temperature=default_temperature(Path(model)),
    )
    listener = open_socket(host, port)  # before a model is loaded for minutes
    try:
        use_threads(threads)
        loaded = load(model, device)
        words = _tokenizer(Path(model), tokenizer, loaded)
        cache_bytes = None if ram_cache is None else int(ram_cache * GIB)
        engine_options = {"cache_bytes": cache_bytes, "max_running": max_running, "max_waiting": max_waiting}
        _serve(config, listener, loaded, words, Path(model), engine_options, open_page, http_server)
    finally:
        listener.close()


def _serve(
    config: "ServingConfig",
    listener: "socket.socket",
    model: "Model",
    tokenizer: "Tokenizer",
    folder: Path,
    engine_options: dict[str, Any],
    open_page: bool,
    http_server: str,
) -> None:
    from dataclasses import replace

    from pelagos.chat.effort import JULY_2026, load_effort_levels
    from pelagos.engine.config import EngineConfig
    from pelagos.engine.engine import Engine
    from pelagos.serving.app import make_app
    from pelagos.serving.granian_server import serve_with_granian
    from pelagos.serving.server import serve
    from pelagos.serving.state import Server

    engine = Engine(model, EngineConfig(**engine_options))
    # A conversation must fit the cache, whatever the model could take.
    config = replace(config, max_context=min(model.config.max_positions, engine.cache.most_tokens))
    levels = load_effort_levels(folder) if folder.is_dir() else JULY_2026
    server = Server(engine, tokenizer, config, levels)
    app = make_app(server)
    server.warm_up()
    engine.start()
    address = _address(config.host, listener.getsockname()[1])
    print(_welcome(address, config), flush=True)
    if open_page:
        import webbrowser

        webbrowser.open(address)
    run = serve_with_granian if http_server == "granian" else serve
    run(app, server, listener)


def _tokenizer(folder: Path, given: Path | None, model: "Model") -> "Tokenizer":
    from pelagos.chat.tokenizer import FILE_NAME, Tokenizer

    place = folder if given is None else given
    if given is None and not (folder / FILE_NAME).is_file():
        raise UsageError(f"{folder} has no {FILE_NAME}: name a folder that has one with --tokenizer")
    tokenizer = Tokenizer.from_file(place) if place.is_file() else Tokenizer.from_folder(place)
    if tokenizer.vocab_size > model.config.vocab_size or not set(model.config.eos_ids) <= tokenizer.stop_ids:
        raise UsageError(
            f"the tokenizer {tokenizer.path} has {tokenizer.vocab_size} ids and ends texts with {tokenizer.eos_id}, "
            f"the model has {model.config.vocab_size} and {model.config.eos_ids}: they do not belong together"
        )
    return tokenizer


def _address(host: str, port: int) -> str:
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _welcome(address: str, config: "ServingConfig") -> str:
    key = "" if config.api_key_file is None else " -H 'Authorization: Bearer KEY'"
    secret = "none" if config.api_key_file is None else "KEY"
    return f"""Chat: {address}/
curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' \
-d '{{"model": "{config.model_name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
openai: OpenAI(base_url="{address}/v1", api_key="{secret}").chat.completions.create(model="{config.model_name}", ...)"""
