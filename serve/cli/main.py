"""The entry point of `tabpfn-serve`: parses the command line, runs the command, and turns a fault into one line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import serve
from serve.cli import import_command, serve_command
from serve.cli.parser import Parser
from serve.core.errors import DeviceLost, StartupError
from serve.settings import InvalidSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; argparse exits by itself for `--help` and a faulty command line."""
    parser = Parser(prog="tabpfn-serve", description="Serves TabPFN models over HTTP, with dynamic batching.")
    parser.add_argument("--version", action="version", version=f"tabpfn-serve {serve.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    serve_command.add_parser(commands)
    import_command.add_parser(commands)
    options = parser.parse_command(sys.argv[1:] if argv is None else argv, commands.choices)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        (import_command if options.command == "import" else serve_command).run(options)
    except KeyboardInterrupt:
        return 0  # before the server took the signals over
    except (DeviceLost, InvalidSettings, StartupError) as error:
        starting = isinstance(error, StartupError) and options.command != "import"
        print(f"tabpfn-serve: {'the start failed: ' if starting else ''}{error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidSettings) else 1
    return 0
