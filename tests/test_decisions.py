"""docs/decisions: every page has the three parts, and the index names every page by its title."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_decision_has_context_decision_and_consequences(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {page.stem[:3]}: ")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert [name for name in headings if name in ("Context", "Decision", "Consequences")] == [
        "Context",
        "Decision",
        "Consequences",
    ]


def test_the_index_names_every_decision() -> None:
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    titles = {page.name: page.read_text(encoding="utf-8").split("\n")[0].split(": ", 1)[1] for page in PAGES}
    listed = re.findall(r"^- \[(\d+)\]\((\S+)\): (.*)$", index, re.MULTILINE)
    assert {name: title for _, name, title in listed} == titles
    assert all(name.startswith(number) for number, name, _ in listed)
    assert [int(number) for number, _, _ in listed] == list(range(1, len(PAGES) + 1))
