"""The master test: a row's answer is the same alone, among any other rows, and by tabpfn itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from models import COLUMNS, definition, records
from tabpfn import TabPFNClassifier, TabPFNRegressor

from serve.core import QUANTILES, REGRESSION_STATISTICS, Batch, ColumnKind, ModelDefinition, QueryTable, Task
from serve.core.errors import EngineError, InvalidModel, OutOfMemory, StartupError
from serve.engine.coding import feature_names
from serve.engine.engine import TabPFNContext, TabPFNEngine
from serve.engine.row_encoder import RowEncoder
from serve.settings import EngineSettings

STRANGE = [
    {"amount": None, "country": "never seen", "code": "999", "seen_at": None, "note": "???"},
    {"amount": 1e30, "country": None, "code": True, "seen_at": "1970-01-01", "note": 7},
    {"amount": True, "country": 1.5, "code": None, "seen_at": "2300-12-31T23:59:59+05:00", "note": ""},
]


@pytest.fixture(params=["demo", "classifier", "regressor"])
def fitted(request: pytest.FixtureRequest) -> TabPFNContext:
    context: TabPFNContext = request.getfixturevalue(request.param)
    return context


def assert_same(context: TabPFNContext, answers: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    """Equal; a regressor's answers on the scale of the largest, and ten times looser: float32 adds up its wide bars."""
    scale = 1.0 if context.classes else 10 * float(np.abs(expected).max())
    np.testing.assert_allclose(answers, expected, rtol=0, atol=tolerance * scale)


def test_a_row_is_answered_alike_in_any_company(engine: TabPFNEngine, fitted: TabPFNContext) -> None:
    rows = np.resize(fitted.encode_context(), (256, fitted.encode_context().shape[1])).copy()
    rows[1::3][np.random.default_rng(0).random(rows[1::3].shape) < 0.2] = np.nan
    whole = engine.predict(Batch(fitted, rows))
    for size in (1, 7, 32):
        for start in range(0, 24, size):
            part = engine.predict(Batch(fitted, rows[start : start + size]))
            assert_same(fitted, part, whole[start : start + size])
    order = np.random.default_rng(1).permutation(256)
    assert_same(fitted, engine.predict(Batch(fitted, rows[order])), whole[order])
    twins = engine.predict(Batch(fitted, np.repeat(rows[:5], 9, axis=0)))
    assert_same(fitted, twins, np.repeat(whole[:5], 9, axis=0))


@pytest.mark.parametrize("name", ["classifier", "regressor"])
def test_strange_neighbours_change_nothing(engine: TabPFNEngine, name: str, request: pytest.FixtureRequest) -> None:
    fitted: TabPFNContext = request.getfixturevalue(name)
    mine = fitted.encode(QueryTable.from_records(records(4, seed=9)))
    alone = engine.predict(Batch(fitted, mine))
    crowd = np.concatenate(
        [fitted.encode(QueryTable.from_records(STRANGE)), mine, fitted.encode(QueryTable.from_records(STRANGE))]
    )
    beside = engine.predict(Batch(fitted, crowd))[len(STRANGE) : len(STRANGE) + len(mine)]
    assert_same(fitted, beside, alone)


def tabpfn_frame(rows: list[dict]) -> pd.DataFrame:
    """Raw cells as a user of tabpfn would hold them, datetimes as their parts."""
    raw = RowEncoder(COLUMNS).read(QueryTable.from_records(rows))
    frame = pd.DataFrame(dict(zip(feature_names(COLUMNS), raw, strict=True)))
    categories = [column.name for column in COLUMNS if column.kind in (ColumnKind.CATEGORY, ColumnKind.TEXT)]
    return frame.astype(dict.fromkeys(categories, "object"))


def settings(model: ModelDefinition) -> dict:
    return {
        "model_path": model.checkpoint_path,
        "device": "cpu",
        "n_estimators": model.options.num_members,
        "random_state": 0,
        "inference_precision": torch.float32,
        "categorical_features_indices": [1, 2, 7],
    }


def test_answers_are_tabpfns_classification(engine: TabPFNEngine, checkpoint: Path) -> None:
    model = definition(checkpoint)
    fitted = engine.fit(model)
    context = [
        dict(zip(model.context.cells, cells, strict=True)) for cells in zip(*model.context.cells.values(), strict=True)
    ]
    estimator = TabPFNClassifier(**settings(model)).fit(tabpfn_frame(context), np.array(model.context.target))
    asked = [*records(40, seed=5), STRANGE[0]]
    expected = estimator.predict_proba(tabpfn_frame(asked))
    got = engine.predict(Batch(fitted, fitted.encode(QueryTable.from_records(asked))))
    assert fitted.classes == tuple(estimator.classes_)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert np.ptp(got, axis=0).max() > 1e-3, "answers that do not depend on the row would prove nothing"


def test_answers_are_tabpfns_regression(engine: TabPFNEngine, checkpoint: Path) -> None:
    model = definition(checkpoint, Task.REGRESSION)
    fitted = engine.fit(model)
    context = [
        dict(zip(model.context.cells, cells, strict=True)) for cells in zip(*model.context.cells.values(), strict=True)
    ]
    estimator = TabPFNRegressor(**settings(model)).fit(tabpfn_frame(context), np.array(model.context.target))
    asked = records(40, seed=5)
    got = engine.predict(Batch(fitted, fitted.encode(QueryTable.from_records(asked))))
    assert got.shape == (40, len(REGRESSION_STATISTICS))
    frame = tabpfn_frame(asked)
    scale = np.ptp(got)
    np.testing.assert_allclose(got[:, 0], estimator.predict(frame, output_type="mean"), rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(got[:, 1], estimator.predict(frame, output_type="median"), rtol=0, atol=1e-5 * scale)
    quantiles = estimator.predict(frame, output_type="quantiles", quantiles=list(QUANTILES))
    np.testing.assert_allclose(got[:, 2:], np.transpose(quantiles), rtol=0, atol=1e-5 * scale)
    assert (np.diff(got[:, 2:], axis=1) >= 0).all()


def test_the_demo_is_tabpfns_before_the_prior_correction(
    engine: TabPFNEngine, demo: TabPFNContext, demo_definition: ModelDefinition
) -> None:
    plain = engine.fit(replace(demo_definition, context=replace(demo_definition.context, class_priors=None)))
    names = [column.name for column in demo.columns]
    frame = pd.DataFrame({name: demo_definition.context.cells[name] for name in names})
    categories = [column.name for column in demo.columns if column.kind is ColumnKind.CATEGORY]
    frame = frame.astype({name: "object" if name in categories else "float64" for name in names})
    estimator = TabPFNClassifier(
        model_path=demo_definition.checkpoint_path, device="cpu", inference_precision=torch.float32, random_state=0,
        ignore_pretraining_limits=True,
        categorical_features_indices=[names.index(name) for name in categories],
    ).fit(frame, np.array(demo_definition.context.target))  # fmt: skip
    asked = frame.iloc[:256]
    got = engine.predict(Batch(plain, plain.encode_context()[:256]))
    np.testing.assert_allclose(got, estimator.predict_proba(asked), rtol=0, atol=1e-5)
    # the correction: the odds of fraud shrink by the same factor for every row
    corrected = engine.predict(Batch(demo, demo.encode_context()[:256]))
    factors = (corrected[:, 1] / corrected[:, 0]) / (got[:, 1] / got[:, 0])
    priors = demo_definition.context.class_priors
    assert priors is not None
    share = list(demo_definition.context.target).count("1") / demo_definition.context.num_rows
    np.testing.assert_allclose(factors, (priors["1"] / share) / (priors["0"] / (1 - share)), rtol=1e-6)
    np.testing.assert_allclose(corrected.sum(axis=1), 1.0)


def test_the_uncached_road_agrees(engine: TabPFNEngine, fitted: TabPFNContext) -> None:
    batch = Batch(fitted, fitted.encode_context()[:6])
    assert_same(fitted, engine.predict(batch), engine.reference(batch), 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"amount": ["x"] * 120}, "row 0, column 'amount': a string where a number belongs"),
        ({"seen_at": ["soon"] * 120}, "row 0, column 'seen_at'"),
    ],
)
def test_a_bad_context_is_refused_by_place(engine: TabPFNEngine, checkpoint: Path, change: dict, message: str) -> None:
    model = definition(checkpoint)
    broken = replace(model, context=replace(model.context, cells={**model.context.cells, **change}))
    with pytest.raises(InvalidModel, match=message):
        engine.fit(broken)


def test_priors_must_name_the_classes(engine: TabPFNEngine, checkpoint: Path) -> None:
    with pytest.raises(InvalidModel, match="class_priors"):
        engine.fit(definition(checkpoint, class_priors={"0": 0.5, "other": 0.5}))


def test_a_missing_checkpoint_is_named(engine: TabPFNEngine, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"absent-v3\.5\.safetensors"):
        engine.fit(definition(tmp_path / "absent-v3.5.safetensors"))


def test_a_broken_batch_is_an_engine_error(engine: TabPFNEngine, classifier: TabPFNContext) -> None:
    with pytest.raises(EngineError, match="2 rows"):
        engine.predict(Batch(classifier, np.zeros((2, 3))))


@pytest.mark.parametrize("lack", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_lack_of_memory_is_told_apart(
    engine: TabPFNEngine, classifier: TabPFNContext, monkeypatch: pytest.MonkeyPatch, lack: Exception
) -> None:
    """The batcher tries fewer rows then, and other requests alone where it is another fault."""

    def run_out(_: object) -> None:
        raise lack

    monkeypatch.setattr(classifier, "launch", run_out)
    with pytest.raises(OutOfMemory, match="no memory for 3 rows on cpu"):
        engine.predict(Batch(classifier, np.repeat(classifier.encode_context()[:1], 3, axis=0)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_failed_start() -> None:
    with pytest.raises(StartupError, match="cuda:0"):
        TabPFNEngine(EngineSettings(device="cuda:0"))


@pytest.mark.gpu
def test_the_gpu_answers_like_the_cpu(checkpoint: Path, classifier: TabPFNContext, engine: TabPFNEngine) -> None:
    cuda = TabPFNEngine(EngineSettings(device="cuda:0", inference_precision="float32"))
    fitted = cuda.fit(definition(checkpoint))
    rows = fitted.encode_context()[:64]
    np.testing.assert_allclose(
        cuda.predict(Batch(fitted, rows)), engine.predict(Batch(classifier, rows)), rtol=0, atol=1e-4
    )


@pytest.mark.gpu
def test_the_gpu_is_waited_for_only_where_a_batch_is_collected(
    checkpoint: Path, classifier: TabPFNContext, engine: TabPFNEngine
) -> None:
    cuda = TabPFNEngine(EngineSettings(device="cuda:0", inference_precision="float32"))
    fitted = cuda.fit(definition(checkpoint))
    batches = [fitted.encode_context()[start : start + 32] for start in (0, 32)]
    cuda.predict(Batch(fitted, batches[0]))  # records the graph
    torch.cuda.set_sync_debug_mode("error")  # torch then raises an error where it waits
    try:
        launched = [cuda.launch(Batch(fitted, rows)) for rows in batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, rows in zip(launched, batches, strict=True):
        np.testing.assert_allclose(one.collect(), engine.predict(Batch(classifier, rows)), rtol=0, atol=1e-4)
