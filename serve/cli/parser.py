"""The parser of the command line: one-line errors, and an option for every setting."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic.fields import FieldInfo

from serve.settings import ServerSettings, every_setting
from serve.settings.sources import ServeOptions, UpOptions, flag, own_options
from serve.settings.words import choices_of, default_of, did_you_mean, limits_of

_UNITS = {
    "rows": "ROWS", "ms": "MILLISECONDS", "s": "SECONDS", "bytes": "BYTES", "dir": "FOLDER", "path": "FILE",
    "repository": "FOLDER", "port": "PORT", "config": "FILE", "url": "URL", "replicas": "COUNT", "threads": "COUNT",
    "requests": "COUNT", "fronts": "COUNT",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Reports a fault in one line, with the nearest valid option, and takes no abbreviated options."""

    def __init__(self, **others: Any) -> None:
        super().__init__(**others, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"tabpfn-serve: {message} (see {self.prog} --help)\n")

    def parse_command(self, argv: Sequence[str], commands: dict[str, Parser]) -> argparse.Namespace:
        """Parse a command line whose `command` is one of `commands`."""
        options, unknown = self.parse_known_args(argv)
        if unknown:
            command = commands[options.command]
            name = next((text for text in unknown if text.startswith("-")), unknown[0]).partition("=")[0]
            kind = "option" if name.startswith("-") else "argument"
            command.error(f"unknown {kind} {name}{did_you_mean(name, command._option_string_actions)}")
        return options


def add_options(parser: argparse.ArgumentParser, options: type[UpOptions]) -> None:
    """Add the options of a command, and one for each setting, to its parser. A value stays text."""
    own = parser.add_argument_group("command")
    for name, field in own_options(options):
        _add(own, name, name, field)
    groups = {
        name: parser.add_argument_group(f"settings: {name}", field.description)
        for name, field in ServerSettings.model_fields.items()
    }
    for group, name, field in every_setting():
        _add(groups[group], f"{group}.{name}", name, field)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line gives, in the form that `load` takes: `{group: {name: value}, option: value}`."""
    found: dict[str, Any] = {}
    own = dict(own_options(ServeOptions))
    for place, value in vars(options).items():
        group, dot, name = place.partition(".")
        if dot:
            found.setdefault(group, {})[name] = value
        elif place in own:
            found[place] = value
    return found


def _add(group: argparse._ArgumentGroup, dest: str, name: str, field: FieldInfo) -> None:
    notes = [f"default: {default_of(field)}", limits_of(field)]
    text = f"{field.description} ({'; '.join(note for note in notes if note)})".replace("%", "%%")
    common: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS, "help": text}
    if name == "models":
        group.add_argument(flag(name), action="append", metavar="NAME=URI[@sha256:HEX]", **common)
    elif field.annotation is bool:
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, **common)
    else:
        group.add_argument(flag(name), metavar=_metavar(name, field), **common)


def _metavar(name: str, field: FieldInfo) -> str:
    if choices := choices_of(field):
        return "{" + ",".join(choices) + "}"
    number = {int, float} & {field.annotation, *typing.get_args(field.annotation)}
    return _UNITS.get(name.rpartition("_")[2], "NUMBER" if number else name.rpartition("_")[2].upper())
