import numpy as np

from serve.engine.preprocessing.graph import Graph
from serve.engine.preprocessing.joins import Fingerprint
from serve.engine.preprocessing.operations import Product, Scale, Standardize


def test_equal_columns_are_one() -> None:
    graph = Graph(np.float64)
    a, b = graph.input(0), graph.input(1)
    assert graph.input(0) == a
    assert graph.add(Scale, a, 2.0) == graph.add(Scale, a, 2.0)
    assert graph.add(Scale, a, 2.0) != graph.add(Scale, a, np.nextafter(2.0, 3))
    assert graph.add(Scale, a, 2.0) != graph.add(Scale, b, 2.0)
    assert graph.add(Scale, a, 0.0) != graph.add(Scale, a, -0.0)
    assert graph.join(Fingerprint, [a, b], 1, np.array(3)) != graph.join(Fingerprint, [b, a], 1, np.array(3))


def test_like_columns_run_in_one_call() -> None:
    graph = Graph(np.float64)
    inputs = [graph.input(i) for i in range(5)]
    scaled = [graph.add(Scale, column, 2.0 + i) for i, column in enumerate(inputs)]
    again = [graph.add(Scale, column, 10.0) for column in scaled]
    product = graph.add(Product, (again[0], scaled[3]))
    plan = graph.plan([*again, product])
    assert len(plan.calls) == 3
    rows = np.arange(10, dtype=np.float64).reshape(5, 2)
    values = plan(rows)
    np.testing.assert_array_equal(values[[plan.place[c] for c in again]], rows / np.arange(2.0, 7)[:, None] / 10)
    np.testing.assert_array_equal(values[plan.place[product]], rows[0] / 20 * (rows[3] / 5))


def test_what_nothing_needs_is_not_computed() -> None:
    graph = Graph(np.float64)
    wanted = graph.add(Standardize, graph.input(7), 1.0, 2.0)
    graph.add(Scale, graph.input(3), 2.0)
    plan = graph.plan([wanted])
    assert plan.inputs == [7]
    assert len(plan.calls) == 1
    np.testing.assert_array_equal(plan(np.array([[5.0]]))[plan.place[wanted]], [2.0])


def test_nothing_wanted() -> None:
    assert Graph(np.float32).plan([])(np.empty((0, 3))).shape == (0, 3)
