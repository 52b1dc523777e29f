"""Section of the `training-evaluate` run: ROC AUC of the demo checkpoint beside baselines."""

from __future__ import annotations

from benchmarks.publish.markdown import Run, provenance, table

_NAMES = {
    "breast_cancer": "breast_cancer",
    "wine": "wine (3 classes)",
    "diabetes": "diabetes, above the median",
    "digits": "digits, 10 components (10 classes)",
    "cards": "card simulator, 18 columns",
}


def section(run: Run, name: str) -> str:
    """One line for each data set."""
    scores = {(each["data_set"], each["model"]): each["roc_auc"] for each in run["results"]}
    models = list(dict.fromkeys(each["model"] for each in run["results"]))
    rows = [
        [title, *(f"{scores[data_set, model]:.3f}" for model in models)]
        for data_set, title in _NAMES.items()
        if (data_set, models[0]) in scores
    ]
    return (
        f"ROC AUC, mean of {run['config']['splits']} splits.\n\n{table(['data set', *models], rows)}\n"
        f"{provenance(run, name, 'python -m training.evaluate')}"
    )
