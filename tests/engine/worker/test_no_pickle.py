"""Nothing in the server unpickles, except the engine's handling of fitted estimators, which runs in the worker."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import serve

SERVE = Path(serve.__file__).parent
ALLOWED = SERVE / "engine" / "estimators"
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing"}
CALLS = {"Unpickler", "NumpyUnpickler", "read_pickle", "load_fitted_tabpfn_model", "allow_pickle"}
OF_MODULES = {("torch", "load"), ("np", "load"), ("numpy", "load")}


def unpickling(tree: ast.AST) -> Iterator[str]:
    """Everything in a module's source that could open a pickle."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=module, names=names):
                if (module or "").split(".")[0] in MODULES:
                    yield str(module)
                yield from (alias.name for alias in names if alias.name in CALLS)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if (name, attribute) in OF_MODULES:
                yield f"{name}.{attribute}"
            case ast.Attribute(attr=name) | ast.keyword(arg=name) if name in CALLS:
                yield str(name)


@pytest.mark.parametrize("path", sorted(SERVE.rglob("*.py")), ids=lambda path: str(path.relative_to(SERVE)))
def test_only_the_handling_of_estimators_unpickles(path: Path) -> None:
    found = list(unpickling(ast.parse(path.read_text())))
    assert not found or path.is_relative_to(ALLOWED), f"{path} could open a pickle: {found}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "import multiprocessing.connection as c", "from multiprocessing import connection",
        "from joblib import load", "torch.load(path)", "np.load(path)", "f(allow_pickle=True)", "pd.read_pickle(path)",
        "from tabpfn.model_loading import load_fitted_tabpfn_model",
    ],
)  # fmt: skip
def test_what_could_open_a_pickle_is_found(source: str) -> None:
    assert list(unpickling(ast.parse(source)))


def test_the_handling_of_estimators_is_found() -> None:
    assert list(unpickling(ast.parse((ALLOWED / "unpickling.py").read_text())))
