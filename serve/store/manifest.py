"""`manifest.json`: everything a model is, beside its context table and its checkpoint. Unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serve.core import ColumnKind, Scalar, Task
from serve.settings.model_source import ModelName, Sha256

Name = ModelName

MANIFEST = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnEntry(_Part):
    """One input column."""

    name: str = Field(min_length=1)
    kind: ColumnKind
    description: str = ""


class FileEntry(_Part):
    """A file and its digest; `path` is absolute or relative to the manifest's folder."""

    path: Path
    sha256: Sha256


class CheckpointEntry(FileEntry):
    """Pre-trained weights (safetensors) and what their licence allows."""

    name: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    non_commercial: bool = False


class EstimatorEntry(FileEntry):
    """A fitted estimator in the place of a context (`engine/estimator_file.py`), as `import_pickle` made it.

    Attributes:
        source_sha256: of the pickle that it was imported from, which the operator pinned.
        made_by: the releases that wrote it; another release imports anew.
    """

    source_sha256: Sha256
    made_by: str
    num_context_rows: int = Field(ge=1)
    num_members: int = Field(ge=1)


class OptionsEntry(_Part):
    """Passed to the library when the context is fitted."""

    num_members: int = Field(8, ge=1, le=64)
    random_state: int = 0
    softmax_temperature: float | None = Field(None, gt=0)


class Manifest(_Part):
    """The whole file."""

    format: Literal[1] = 1
    name: Name
    version: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}$")]
    task: Task
    description: str = ""
    columns: tuple[ColumnEntry, ...] = Field(min_length=1)
    target: str
    class_priors: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = None
    context: FileEntry | None = None
    estimator: EstimatorEntry | None = None
    checkpoint: CheckpointEntry
    options: OptionsEntry = OptionsEntry()
    default_timeout_ms: float | None = Field(None, gt=0, allow_inf_nan=False)
    example: dict[str, Scalar] | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ValueError("two columns have the same name")
        if (self.context is None) == (self.estimator is None):
            raise ValueError("a model has a context or an estimator, and not both")
        if self.estimator is not None and (self.class_priors is not None or self.options != OptionsEntry()):
            raise ValueError("class_priors and options belong to a context; an estimator has its own")
        if self.target in names:
            raise ValueError(f"the target {self.target!r} is also an input column")
        if self.class_priors is not None and self.task is Task.REGRESSION:
            raise ValueError("class_priors belong to classification")
        if self.class_priors is not None and abs(sum(self.class_priors.values()) - 1) > 1e-6:
            raise ValueError("class_priors do not sum to 1")
        if self.example is not None and set(self.example) != set(names):
            raise ValueError("the example does not have exactly the input columns")
        return self
