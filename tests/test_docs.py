"""The documentation says what the code does."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from prometheus_client.metrics import MetricWrapperBase
from tabpfn.checkpoint import Checkpoint

from serve.core import Batch, ColumnKind, QueryTable, Task
from serve.engine.engine import TabPFNEngine
from serve.settings import EngineSettings, ServerSettings, StoreSettings, every_setting
from serve.settings import page as settings_page
from serve.settings.model_source import PICKLE_SUFFIXES, ModelSource
from serve.settings.sources import ServeOptions, flag, own_options
from serve.store import FolderStore
from serve.store.folder import EMBEDDED
from serve.store.manifest import CheckpointEntry, Manifest, OptionsEntry
from serve.telemetry.prometheus import Histogram, PrometheusRecorder

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def table_rows(markdown: str) -> list[list[str]]:
    """Cells of every row, of all tables, whose first cell is code."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.split("\n") if line[:3] == "| `"
    ]


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_are_written_from_the_code() -> None:
    _, _, tables = read("settings.md").partition(settings_page.MARKER)
    assert tables == settings_page.render(), "run: make settings-page"


def test_every_setting_says_how_to_choose_it() -> None:
    rendered = settings_page.render()
    for _, name, field in every_setting():
        assert len(field.description or "") > 20, name
        assert f"| `{name}` |" in rendered
    assert all(f"| `{flag(name)}` |" in rendered for name, _ in own_options(ServeOptions))


# --- metrics --------------------------------------------------------------------------------------------------------


def metrics_of_the_code() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for metric in vars(PrometheusRecorder()).values():
        if isinstance(metric, Histogram):
            yield metric.name, "histogram", metric.label_names
        elif isinstance(metric, MetricWrapperBase):
            total = "_total" if metric._type == "counter" else ""
            yield metric._name + total, metric._type, metric._labelnames


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    documented = [
        (name.strip("`"), kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, *_ in table_rows(read("metrics.md"))
    ]
    assert documented == list(metrics_of_the_code())


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The Python blocks of docs/models.md, about to be run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return re.findall(r"```python\n(.*?)```", read("models.md"), re.DOTALL)


def test_the_example_makes_a_model_that_answers(examples: list[str], tmp_path: Path) -> None:
    exec(compile(examples[0], "docs/models.md", "exec"), {})
    store = FolderStore(StoreSettings(model_repository=tmp_path / "models"))
    assert store.names() == ["churn"]
    definition = store.load("churn")
    assert [column.kind for column in definition.context.columns] == ["number", "category", "datetime"]
    assert definition.example is not None

    engine = TabPFNEngine(EngineSettings(), max_batch_rows=1)
    fitted = engine.fit(definition)
    answer = engine.predict(Batch(fitted, fitted.encode(QueryTable.from_records([definition.example]))))
    assert fitted.classes == ("no", "yes")
    assert answer.sum() == pytest.approx(1)
    # the context holds three times as many "yes" as the stated prior
    assert engine.predict(Batch(fitted, fitted.encode_context()))[:, 1].mean() < 0.2


def test_the_conversion_keeps_a_checkpoint(examples: list[str], tmp_path: Path) -> None:
    original = Checkpoint(EMBEDDED / "checkpoints" / "demo-v3.5.safetensors").load()
    torch.save(original, tmp_path / "tabpfn-v2-classifier.ckpt")
    exec(compile(examples[-1], "docs/models.md", "exec"), {})
    converted = Checkpoint(tmp_path / "tabpfn-v2-classifier.safetensors").load()
    weights = original.pop("state_dict"), converted.pop("state_dict")
    assert original == converted
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_every_manifest_field_and_kind_is_documented() -> None:
    text = read("models.md")
    documented = {row[0].strip("`") for row in table_rows(text)}
    assert documented >= set(Manifest.model_fields) | set(ColumnKind)
    for name in (*CheckpointEntry.model_fields, *OptionsEntry.model_fields, *Task):
        assert f"`{name}`" in text


def test_every_key_of_a_model_source_is_documented() -> None:
    _, _, text = read("models.md").partition("## Models from S3\n")
    section = text.partition("\n## ")[0]
    assert [row[0].strip("`") for row in table_rows(section)] == list(ModelSource.model_fields)
    assert all(f"`{suffix}`" in section for suffix in PICKLE_SUFFIXES)


def test_the_example_of_models_in_s3_is_a_configuration() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", read("models.md"), re.DOTALL)
    settings = ServerSettings.model_validate(yaml.safe_load(example))
    assert [model.name for model in settings.store.models] == ["fraud", "churn"]


# --- the rest -------------------------------------------------------------------------------------------------------


def test_every_folder_says_what_is_in_it() -> None:
    for top in ("serve", "benchmarks", "training", "deployment"):
        for init in (ROOT / top).rglob("__init__.py"):
            docstring = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8")))
            assert docstring, f"{init.relative_to(ROOT)} has no docstring"


def test_the_readme_makes_a_model_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    definition = FolderStore(StoreSettings(model_repository=tmp_path / "models")).load("wine")
    assert (definition.context.num_rows, len(definition.context.columns)) == (178, 13)


def test_the_readme_shows_the_answer_of_the_demo_model() -> None:
    definition = FolderStore(StoreSettings()).load("fraud")
    assert definition.example is not None
    fitted = (engine := TabPFNEngine(EngineSettings())).fit(definition)
    (answer,) = engine.predict(Batch(fitted, fitted.encode(QueryTable.from_records([definition.example])))).tolist()
    shown = re.search(
        r'"label":"(\w+)","probabilities":\[([\d.,]+)\]', (ROOT / "README.md").read_text(encoding="utf-8")
    )
    assert shown is not None
    assert shown[2] == ",".join(f"{probability:.3f}" for probability in answer)
    assert shown[1] == fitted.classes[answer.index(max(answer))]


def test_readme_and_architecture_stay_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90
    assert len(read("architecture.md").splitlines()) <= 160


def links() -> Iterator[tuple[str, Path, str]]:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+:", target):
                yield f"{page.relative_to(ROOT)}: {target}", page, target


def test_relative_links_lead_somewhere() -> None:
    found = list(links())
    assert len(found) > 5
    broken = [name for name, page, target in found if not target_exists(page, target)]
    assert not broken


def target_exists(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not anchor or anchor in anchors(file))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_newest_change_is_of_this_version() -> None:
    versions = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == PROJECT["version"]


def test_every_dependency_is_explained() -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    asked = [re.match(r"[\w.-]+", line)[0].lower() for group in groups for line in group]  # type: ignore[index]
    rows = re.findall(r"^\| ([\w.-]+) \|", read("dependencies.md"), re.MULTILINE)
    assert [name for name in rows if name != "package"] == asked
