"""``pelagos connect``: the settings with which a client uses a running server, shown or written where it reads them."""

import json
import shlex
import sys
from typing import Annotated

import typer

from pelagos.cli.connect_clients import CLIENTS, Server, Setup
from pelagos.cli.connect_files import write_setup
from pelagos.cli.options import Json
from pelagos.common.errors import UsageError

Client = Annotated[str, typer.Argument(metavar="CLIENT", help=f"One of {', '.join(CLIENTS)}.")]
Url = Annotated[str, typer.Option(help="Where the server is; a path behind the port is kept, /v1 is not.")]
ModelName = Annotated[str | None, typer.Option(help="One of the server's models. Default: its first.")]
Key = Annotated[str | None, typer.Option(help="The API key, if the server wants one.")]
Write = Annotated[
    bool,
    typer.Option("--write", help="Write the settings where the client reads them, after a backup of what is there."),
]


def connect_command(
    client: Client,
    url: Url = "http://127.0.0.1:8000",
    model: ModelName = None,
    key: Key = None,
    write: Write = False,
    as_json: Json = False,
) -> None:
    """Print the settings with which a client uses a running server, or write them with --write.

    The server is asked for its models and their context first, so that the client knows how long a chat may get.
    """
    from pelagos.cli.connect_server import find_server

    if client not in CLIENTS:
        raise UsageError(f"CLIENT must be one of {', '.join(CLIENTS)}, not {client!r}")
    server = find_server(url, model, key)
    setup = CLIENTS[client](server)
    if as_json and write:
        raise UsageError("--json shows the settings and --write writes them: give one of the two")
    if as_json:
        print(json.dumps(setup.as_json(), indent=2, ensure_ascii=False))
    elif write:
        for line in write_setup(setup):
            print(line)
        _hints(setup)
    else:
        _show(server, setup)


def _show(server: Server, setup: Setup) -> None:
    print(f"# {server.url} answers: model {server.model}, {server.context_length:,} tokens of context")
    for file in setup.files:
        print(f"\n# in {file.path}\n{file.shown()}")
    if setup.variables:
        print()
        for name, value in setup.variables.items():
            print(f"export {name}={shlex.quote(value)}")
    if setup.example:
        print(f"\n{setup.example}")
    _hints(setup)


def _hints(setup: Setup) -> None:
    if setup.start:
        print(f"\n# then: {setup.start}", file=sys.stderr)
    for note in setup.notes:
        print(f"# note: {note}", file=sys.stderr)
