"""`python -m serve.settings.page docs/settings.md` writes the tables of that page from the descriptions."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from pydantic.fields import FieldInfo

from serve.settings.schema import ServerSettings, every_setting
from serve.settings.sources import ServeOptions, UpOptions, flag, own_options
from serve.settings.words import choices_of, default_of, limits_of

MARKER = "<!-- `make settings-page` writes what follows from the code. -->\n"


def render() -> str:
    """The tables, as Markdown: the options of the commands, then one table per group of settings."""
    common = dict(own_options(UpOptions))
    options = [
        (flag(name), field, "" if name in common else "`serve` only. ") for name, field in own_options(ServeOptions)
    ]
    parts = [
        _table("Options of the commands", "The options of `up` and `serve` beside the settings.", "option", options)
    ]
    for group, of_group in ServerSettings.model_fields.items():
        settings = [(name, field, "") for owner, name, field in every_setting() if owner == group]
        parts.append(_table(f"`{group}`", of_group.description or "", "setting", settings))
    return "".join(parts)


def write(page: Path) -> None:
    """Replace what follows the marker in a page."""
    head, marker, _ = page.read_text(encoding="utf-8").partition(MARKER)
    page.write_text(head + marker + render(), encoding="utf-8")


def _table(title: str, text: str, kind: str, rows: Iterable[tuple[str, FieldInfo, str]]) -> str:
    lines = [f"\n## {title}\n\n{text}\n\n| {kind} | default | values | how to choose it |\n|---|---|---|---|\n"]
    for name, field, note in rows:
        default = default_of(field)
        cell = default if default == "empty" else f"`{default}`"
        values = ", ".join(f"`{choice}`" for choice in choices_of(field)) or limits_of(field)
        lines.append(f"| `{name}` | {cell} | {values} | {note}{field.description} |\n")
    return "".join(lines)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
