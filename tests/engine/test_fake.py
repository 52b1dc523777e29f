"""FakeEngine keeps the Engine protocol's promises, or tests built on it prove nothing."""

import threading

import numpy as np
import pytest

from serve.core import (
    QUANTILES,
    REGRESSION_STATISTICS,
    Batch,
    Column,
    ColumnKind,
    Context,
    Engine,
    EnsembleOptions,
    FittedContext,
    ModelDefinition,
    QueryTable,
    Scalar,
    Task,
)
from serve.core.errors import InvalidInput, InvalidModel
from serve.engine.checks.parity import canary_rows, check_parity
from serve.engine.checks.warmup import warm_up
from serve.engine.fake import FakeContext, FakeEngine, fake_answer

CLASSIFIER = FakeContext(classes=("a", "b", "c"))
REGRESSOR = FakeContext(classes=())


def definition(task: Task, kind: ColumnKind = ColumnKind.NUMBER) -> ModelDefinition:
    cells: dict[str, list[Scalar]] = {"x": [1.5, 2, None], "y": [0, -1, 3]}
    target: list[str] | list[float] = ["no", "yes", "no"] if task is Task.CLASSIFICATION else [0.1, 0.2, 0.3]
    columns = (Column("y", kind), Column("x", ColumnKind.NUMBER))
    return ModelDefinition("m", "1", Context(task, columns, cells, target), "/none", "fake", "none", EnsembleOptions())


def test_it_is_an_engine() -> None:
    engine: Engine = FakeEngine()
    context: FittedContext = engine.fit(definition(Task.CLASSIFICATION))
    assert engine.device == "cpu"
    assert context.classes == ("no", "yes")
    assert [column.name for column in context.columns] == ["y", "x"]
    np.testing.assert_array_equal(context.encode_context(), [[0, 1.5], [-1, 2], [3, np.nan]])


def test_regressor_answers_its_statistics_in_order() -> None:
    engine = FakeEngine()
    context = engine.fit(definition(Task.REGRESSION))
    assert context.classes == ()
    answer = engine.predict(Batch(context, context.encode_context()))
    assert answer.shape == (3, len(REGRESSION_STATISTICS))
    quantiles = answer[:, -len(QUANTILES) :]
    assert (np.diff(quantiles, axis=1) > 0).all()


def test_fit_refuses_what_is_not_a_number_column() -> None:
    with pytest.raises(InvalidModel, match="'y'"):
        FakeEngine().fit(definition(Task.CLASSIFICATION, ColumnKind.CATEGORY))


@pytest.mark.parametrize("context", [CLASSIFIER, REGRESSOR])
def test_it_passes_warm_up_and_the_parity_check(context: FakeContext) -> None:
    engine = FakeEngine()
    rows = canary_rows(context.encode_context())
    assert set(warm_up(engine, context, rows, (1, 2, 8), 1e-6)) == {1, 2, 8}
    assert check_parity(engine, context, rows, 1e-12) < 1e-12


def test_probabilities_are_probabilities_even_of_extreme_rows() -> None:
    rows = np.array([[0.0, 0.0, 0.0], [1e308, -1e308, 5e-324], [np.nan, np.nan, np.nan]])
    answer = FakeEngine().predict(Batch(CLASSIFIER, rows))
    assert ((answer > 0) & (answer < 1)).all()
    np.testing.assert_allclose(answer.sum(axis=1), 1)


@pytest.mark.parametrize("context", [CLASSIFIER, REGRESSOR])
def test_every_row_has_its_own_answer(context: FakeContext) -> None:
    """So that a swap of any two rows, or of two cells within one, is seen."""
    grid = np.stack(np.meshgrid(*[np.arange(10.0)] * 3), axis=-1).reshape(-1, 3)
    first = np.sort(fake_answer(Batch(context, grid))[:, 0])
    assert np.diff(first).min() > 1e-9


@pytest.mark.parametrize(
    ("record", "code", "column"),
    [
        ({"a": 1, "b": 2}, "missing_column", "c"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "unknown_column", "d"),
        ({"a": 1, "b": "2", "c": 3}, "wrong_type", "b"),
        ({"a": 1, "b": [2], "c": 3}, "wrong_type", "b"),
        ({"a": 1, "b": 2, "c": float("inf")}, "out_of_range", "c"),
        ({"a": 1, "b": 2, "c": 10**400}, "out_of_range", "c"),
    ],
)
def test_a_bad_record_is_refused_with_its_place(
    fake_context: FakeContext, record: dict[str, object], code: str, column: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        fake_context.encode(QueryTable.from_records([{"a": 1, "b": 2, "c": 3}, record]))
    assert (refusal.value.code, refusal.value.row, refusal.value.column) == (code, 1, column)


def test_records_and_tables_of_the_same_cells_encode_alike(fake_context: FakeContext) -> None:
    records = fake_context.encode(QueryTable.from_records([{"a": 1, "b": None, "c": 3}, {"c": 6, "a": 4, "b": 5.5}]))
    table = fake_context.encode(QueryTable.from_rows(["c", "a", "b"], [[3, 1, None], [6, 4, 5.5]]))
    np.testing.assert_array_equal(records, [[1, np.nan, 3], [4, 5.5, 6]])
    np.testing.assert_array_equal(table, records)
    assert records.dtype == np.float64


def test_cells_are_read_as_by_the_real_engine(fake_context: FakeContext) -> None:
    table = QueryTable.from_records([{"a": True, "b": float("nan"), "c": False}])
    np.testing.assert_array_equal(fake_context.encode(table), [[1, np.nan, 0]])


@pytest.mark.parametrize(
    ("columns", "data", "code"),
    [(["a", "a", "b"], [[1, 1, 1]], "duplicate_column"), (["a", "b", "c"], [[1, 2, 3], [1, 2]], "ragged_row")],
)
def test_a_bad_table_is_refused(
    fake_context: FakeContext, columns: list[str], data: list[list[float]], code: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        fake_context.encode(QueryTable.from_rows(columns, data))
    assert refusal.value.code == code


def test_cost_occupies_the_device(fake_context: FakeContext) -> None:
    asked: list[int] = []

    def cost_s(num_rows: int) -> float:
        asked.append(num_rows)
        return 0.0

    FakeEngine(cost_s).predict(Batch(fake_context, np.zeros((7, 3))))
    assert asked == [7]


def test_two_threads_at_a_time_fail(fake_context: FakeContext) -> None:
    entered, leave = threading.Event(), threading.Event()

    def gate(_: Batch) -> None:
        entered.set()
        assert leave.wait(10)

    engine = FakeEngine(gate=gate)
    batch = Batch(fake_context, np.zeros((1, 3)))
    first = threading.Thread(target=engine.predict, args=(batch,))
    first.start()
    assert entered.wait(10)
    with pytest.raises(AssertionError, match="one thread"):
        engine.predict(batch)
    leave.set()
    first.join()
    assert engine.predict(batch).shape == (1, 2)


def test_nothing_is_answered_after_close(fake_context: FakeContext) -> None:
    engine = FakeEngine()
    engine.close()
    with pytest.raises(AssertionError, match="closed"):
        engine.predict(Batch(fake_context, np.zeros((1, 3))))


def test_of_two_in_flight_each_is_computed_when_it_is_collected(fake_context: FakeContext) -> None:
    seen: list[float] = []
    engine = FakeEngine(gate=lambda batch: seen.append(batch.rows[0, 0]), max_in_flight=2)
    batches = [Batch(fake_context, np.full((1, 3), number)) for number in (1.0, 2.0, 3.0)]
    first, second = (engine.launch(batch) for batch in batches[:2])
    assert seen == []
    with pytest.raises(AssertionError, match="more than 2"):
        engine.launch(batches[2])
    with pytest.raises(AssertionError, match="order"):
        second.collect()
    np.testing.assert_array_equal(first.collect(), fake_answer(batches[0]))
    third = engine.launch(batches[2])
    for launched, batch in ((second, batches[1]), (third, batches[2])):
        np.testing.assert_array_equal(launched.collect(), fake_answer(batch))
    assert seen == [1.0, 2.0, 3.0]
    with pytest.raises(AssertionError, match="once"):
        third.collect()


def test_a_batch_that_fails_is_no_longer_in_flight(fake_context: FakeContext) -> None:
    def gate(_: Batch) -> None:
        raise LookupError

    for max_in_flight in (1, 2):
        engine = FakeEngine(gate=gate, max_in_flight=max_in_flight)
        for _ in range(3):
            with pytest.raises(LookupError):
                engine.predict(Batch(fake_context, np.zeros((1, 3))))


def test_nothing_else_is_called_with_a_batch_in_flight(fake_context: FakeContext) -> None:
    engine = FakeEngine(max_in_flight=2)
    batch = Batch(fake_context, np.zeros((1, 3)))
    launched = engine.launch(batch)
    for call in (lambda: engine.fit(definition(Task.CLASSIFICATION)), lambda: engine.reference(batch)):
        with pytest.raises(AssertionError, match="in flight"):
            call()
    launched.collect()
    assert engine.fit(definition(Task.CLASSIFICATION)).classes == ("no", "yes")
