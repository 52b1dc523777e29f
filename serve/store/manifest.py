"""`manifest.json`: the description of a model, beside its context and its checkpoint. Unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serve.core import ColumnKind, Scalar, Task
from serve.settings.model_source import ModelName, Sha256

MANIFEST = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnEntry(_Part):
    """One input column."""

    name: str = Field(min_length=1)
    kind: ColumnKind
    description: str = ""


class FileEntry(_Part):
    """A file and its digest; `path` is absolute, or relative to the manifest's folder."""

    path: Path
    sha256: Sha256


class CheckpointEntry(FileEntry):
    """Pre-trained weights (safetensors), with the name and the licence that callers are shown."""

    name: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    non_commercial: bool = False


class EstimatorEntry(FileEntry):
    """A fitted estimator instead of a context, as `pickles.import_pickle` wrote it.

    Attributes:
        source_sha256: SHA-256 of the pickle that was imported, as the operator pinned it.
        made_by: the releases that wrote the file. Another release imports the pickle anew.
        num_context_rows: rows that the estimator was fitted on.
        num_members: ensemble members of the estimator.
        notes: what the import found that the operator should know.
    """

    source_sha256: Sha256
    made_by: str
    num_context_rows: int = Field(ge=1)
    num_members: int = Field(ge=1)
    notes: tuple[str, ...] = ()


class OptionsEntry(_Part):
    """Ensemble options, passed to tabpfn when the context is fitted."""

    num_members: int = Field(8, ge=1, le=64)
    random_state: int = 0
    softmax_temperature: float | None = Field(None, gt=0)


class Manifest(_Part):
    """The whole file. `docs/models.md` explains the fields.

    Raises:
        pydantic.ValidationError: a field is wrong, or two fields contradict each other.
    """

    format: Literal[1] = 1
    name: ModelName
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
            raise ValueError("a model has either a context or an estimator; give one of the two, not both")
        if self.estimator is not None and (self.class_priors is not None or self.options != OptionsEntry()):
            raise ValueError("class_priors and options belong to a context; leave them out for an estimator")
        if self.target in names:
            raise ValueError(f"the target {self.target!r} is also an input column; take it out of columns")
        if self.class_priors is not None and self.task is Task.REGRESSION:
            raise ValueError("class_priors belong to classification; leave them out for regression")
        if self.class_priors is not None and abs(sum(self.class_priors.values()) - 1) > 1e-6:
            raise ValueError("class_priors do not sum to 1")
        if self.example is not None and set(self.example) != set(names):
            raise ValueError("the example must have every input column and no other")
        return self
