"""The shape of the answer, the members that are not compiled, and what we lean on in tabpfn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ensembles import assert_close, fit, member_rows, odd_rows, preset, table, tabpfn_rows, tabpfn_rows_alone
from tabpfn.preprocessing import steps
from tabpfn.preprocessing.configs import PreprocessorConfig
from tabpfn.preprocessing.steps import add_fingerprint_features_step
from tabpfn.preprocessing.torch import steps as torch_steps

from serve.engine.preprocessing import compile_preprocessing


class DoublingStep(steps.ShuffleFeaturesStep):
    """A step that a later release might bring: looks like a known one, does something else."""

    def _transform(self, X: Any, *, is_test: bool = False) -> Any:
        shuffled, *rest = super()._transform(X, is_test=is_test)
        return shuffled * 2, *rest


def test_unknown_step_runs_by_tabpfn(checkpoint: Path) -> None:
    members = fit(checkpoint, preset("demo"), table(100, seed=0))
    shuffle, modalities = members[1].cpu_preprocessor.steps[-1]
    shuffle.__class__ = DoublingStep
    preprocessing = compile_preprocessing(members)
    assert preprocessing.uncompiled == ("DoublingStep",)
    assert preprocessing.groups == ((0, 1, 2, 3),)
    rows = odd_rows()
    for member, got in zip(members, member_rows(preprocessing, rows), strict=True):
        assert_close(got, tabpfn_rows(member, rows))
    assert not modalities


def test_uncompiled_fingerprint_does_not_depend_on_company(checkpoint: Path) -> None:
    transforms = [PreprocessorConfig("quantile_norm", categorical_name="onehot", global_transformer_name="svd")]
    config = {"PREPROCESS_TRANSFORMS": transforms, "FINGERPRINT_FEATURE": True}
    members = fit(checkpoint, config, table(100, seed=0), num_members=2)
    preprocessing = compile_preprocessing(members)
    assert preprocessing.uncompiled == ("AdaptiveQuantileTransformer",)
    rows = odd_rows()[:4]
    for member, got in zip(members, member_rows(preprocessing, rows), strict=True):
        assert_close(got, tabpfn_rows_alone(member, rows))


def test_groups(checkpoint: Path) -> None:
    members = fit(checkpoint, preset("v2"), table(100, seed=0))
    by_width = compile_preprocessing(members)
    assert by_width.groups == ((0, 1), (2, 3))
    chosen = compile_preprocessing(members, [[3], [1, 0]])
    rows = odd_rows()
    narrow, wide = chosen(rows)
    assert wide.shape == (2, len(rows), by_width.widths[0])
    assert torch.equal(narrow.nan_to_num(), by_width(rows)[1][1:].nan_to_num())
    assert torch.equal(wide.nan_to_num(), by_width(rows)[0].flip(0).nan_to_num())
    with pytest.raises(ValueError, match="differ in width"):
        compile_preprocessing(members, [[0, 2]])


@pytest.mark.parametrize("name", ["demo", "v2", "mix"])
def test_columns_of_one_number_are_equal(checkpoint: Path, name: str) -> None:
    preprocessing = compile_preprocessing(fit(checkpoint, preset(name), table(100, seed=0)))
    rows = odd_rows()
    rows[0] = np.inf
    num_shared = 0
    for columns, output in zip(preprocessing.columns, preprocessing(rows), strict=True):
        assert columns.shape == (output.shape[0], output.shape[2])
        values = output.transpose(1, 2).flatten(0, 1).nan_to_num(nan=-77.0).numpy()
        numbers = columns.flatten().tolist()
        assert len(np.unique(values, axis=0)) <= len(set(numbers)) <= len(values)
        for number in set(numbers):
            same = values[np.array(numbers) == number]
            assert (same == same[0]).all()
            num_shared += len(same) - 1
    assert num_shared > 8 or name == "mix"  # which has no two members alike


def test_columns_of_tabpfn_are_their_own(checkpoint: Path) -> None:
    members = fit(checkpoint, preset("demo"), table(100, seed=0))
    members[1].cpu_preprocessor.steps[-1][0].__class__ = DoublingStep
    (columns,) = compile_preprocessing(members).columns
    others = columns[[0, 2, 3]].flatten().tolist()
    assert len(set(others)) < len(others)
    assert len(set(columns[1].tolist()) - set(others)) == columns.shape[1]


def test_answers_share_nothing(checkpoint: Path) -> None:
    preprocessing = compile_preprocessing(fit(checkpoint, preset("demo"), table(100, seed=0)))
    rows = odd_rows()
    kept, before = rows.copy(), [output.clone() for output in preprocessing(rows)]
    first = preprocessing(rows)
    second = preprocessing(rows * 3)
    np.testing.assert_array_equal(rows, kept)
    for output, same, other in zip(first, before, second, strict=True):
        assert torch.equal(output.nan_to_num(), same.nan_to_num())
        assert not torch.equal(output.nan_to_num(), other.nan_to_num())


def test_no_rows(checkpoint: Path) -> None:
    preprocessing = compile_preprocessing(fit(checkpoint, preset("v2"), table(100, seed=0)))
    outputs = preprocessing(np.empty((0, 8)))
    assert [output.shape[1] for output in outputs] == [0] * len(preprocessing.groups)


def test_rows_are_written_into_the_tensor_that_is_given(checkpoint: Path) -> None:
    preprocessing = compile_preprocessing(fit(checkpoint, preset("v2"), table(100, seed=0)))
    rows = odd_rows()
    whole = preprocessing.new_tensor(len(rows), is_pinned=False)
    outputs = preprocessing(rows, whole)
    assert sum(output.numel() for output in outputs) == whole.numel()
    for output, part, alone in zip(outputs, preprocessing.split(whole), preprocessing(rows), strict=True):
        assert output.data_ptr() == part.data_ptr()
        torch.testing.assert_close(part, alone, rtol=0, atol=0, equal_nan=True)


# What the translators read off tabpfn's fitted objects. If a release renames one of these or brings a new part,
# this is the place that says so first.
STEP_ATTRIBUTES = {
    steps.NanHandlingPolynomialFeaturesStep: {"standardizer", "poly_factor_1_idx", "poly_factor_2_idx"},
    steps.RemoveConstantFeaturesStep: {"sel_"},
    steps.ReshapeFeatureDistributionsStep: {"data_is_unchanged_", "column_order_", "transformer_"},
    steps.EncodeCategoricalFeaturesStep: {"categorical_transformer_", "categorical_transform_name", "random_mappings_"},
    steps.AddSVDFeaturesStep: {"is_no_op", "transformer_"},
    steps.AddFingerprintFeaturesStep: {"n_cells_"},
    steps.ShuffleFeaturesStep: {"index_permutation_"},
}
TORCH_STATISTICS = {
    torch_steps.TorchSelectiveQuantileTransformerStep: {"quantiles", "references"},
    torch_steps.TorchSelectiveSquashingScalerStep: {"center", "scale", "zero_mask"},
    torch_steps.TorchAddSVDFeaturesStep: {"scaler_std", "scaler_mean", "svd_components", "svd_singular_values"},
    torch_steps.TorchAddFingerprintFeaturesStep: {"n_cells"},
    torch_steps.TorchShuffleFeaturesStep: {"permutation"},
    torch_steps.TorchSoftClipOutliersStep: {"lower", "upper"},
}


def _rich_members(checkpoint: Path, in_torch: bool) -> list[Any]:
    transforms = [
        PreprocessorConfig("quantile_uni", categorical_name="ordinal_shuffled", global_transformer_name="svd"),
        PreprocessorConfig("squashing_scaler_default", categorical_name="ordinal_shuffled"),
    ]
    config = {
        "PREPROCESS_TRANSFORMS": transforms,
        "FINGERPRINT_FEATURE": True,
        "POLYNOMIAL_FEATURES": 3,
        "ENABLE_GPU_PREPROCESSING": in_torch,
    }
    return fit(checkpoint, config, table(100, seed=0), num_members=2)


def test_steps_hold_what_we_read(checkpoint: Path) -> None:
    met = set()
    for step, modalities in (pair for m in _rich_members(checkpoint, False) for pair in m.cpu_preprocessor.steps):
        assert STEP_ATTRIBUTES[type(step)] <= vars(step).keys(), type(step).__name__
        assert not modalities
        met.add(type(step))
    assert met == STEP_ATTRIBUTES.keys()


def test_torch_steps_hold_what_we_read(checkpoint: Path) -> None:
    met = set()
    for member in _rich_members(checkpoint, True):
        pipeline = member.gpu_preprocessor
        for (step, _), fitted in zip(pipeline.steps, pipeline.fitted_cache, strict=True):
            if not isinstance(step, torch_steps.TorchAddSVDFeaturesStep):
                assert fitted.keys() == TORCH_STATISTICS[type(step)], type(step).__name__
            assert fitted.keys() >= TORCH_STATISTICS[type(step)], type(step).__name__
            met.add(type(step))
    assert met == TORCH_STATISTICS.keys()


def test_no_step_of_tabpfn_is_unknown_to_this_test() -> None:
    known = {kind.__name__ for kind in STEP_ATTRIBUTES}
    exported = {name for name in steps.__all__ if name.endswith("Step")}
    assert exported - known == {"DifferentiableZNormStep"}, "a new step: translate it, or add it here"


def test_fingerprint_is_rounded_as_we_round() -> None:
    assert add_fingerprint_features_step._HASH_ROUND_DECIMALS == 12
    assert add_fingerprint_features_step._CONSTANT == 2**64 - 1
