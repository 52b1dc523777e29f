"""What the commands of the benchmarks share: help that shows every default, and errors of one line."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.machine import write_json


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description and adds each option's default to its help."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = _default(action.default)
        if action.help is None or not action.option_strings or shown is None:
            return action.help
        return f"{action.help} (default: {shown})"


def _default(value: Any) -> str | None:
    """A default as it is typed on the command line; None where there is nothing to show."""
    if value is None or isinstance(value, bool) or value == argparse.SUPPRESS:
        return None
    return " ".join(shlex.quote(str(each)) for each in value) if isinstance(value, list | tuple) else str(value)


class CommandParser(argparse.ArgumentParser):
    """Says in one line what is wrong with the options, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help describes the options)\n")


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE`."""
    return CommandParser(prog=f"python -m {module}", description=description, formatter_class=HelpFormatter)


def add_outputs(parser: argparse.ArgumentParser, when: str = "at the end of the run") -> None:
    """`--json` and `--plot`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write the run to this file, {when}")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the run to this PNG file (needs matplotlib)")


def check_outputs(parser: argparse.ArgumentParser, *paths: Path | None) -> None:
    """End the command now, before it measures, if a result could not be written. The last path is the plot's."""
    for path in paths:
        if path is not None and path.is_dir():
            parser.error(f"{path} is a folder: name a file in it")
    if paths[-1] is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: install the extra `dev`, or leave --plot out and draw the JSON later")


def write_outputs(run: Mapping[str, Any], to_json: Path | None, to_plot: Path | None) -> None:
    """What `--json` and `--plot` ask for, at the end of a run."""
    if to_json:
        write_json(run, to_json)
    if to_plot:
        from benchmarks.report import plot  # matplotlib, which nothing else here needs

        plot(run, to_plot)


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small: give 1 or more")
    return number


def existing_file(text: str) -> Path:
    """The path of a file that is there, for `type=`."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def read_run(path: Path) -> dict[str, Any]:
    """A run from its JSON. Raises ValueError that names the file and says what to do."""
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = _listed(sorted(path.parent.glob("*.json")))
        raise ValueError(f"there is no file {path}; JSON files in that folder: {near}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a run's JSON: {error}") from error
    if not isinstance(run, dict) or "kind" not in run:
        raise ValueError(f"{path} is not a run's JSON: it has no `kind`")
    return run


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths) or "none"
