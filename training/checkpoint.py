"""The shape of the demo checkpoint and its file: tabpfn's own v3.5 architecture, small, saved as safetensors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tabpfn.architectures import ARCHITECTURES
from tabpfn.checkpoint import save_as_safetensors
from tabpfn.inference_config import InferenceConfig
from tabpfn.preprocessing.configs import PreprocessorConfig
from torch import nn

ARCHITECTURE_NAME = "tabpfn_v3_5"
"""Chosen over v2: no random embeddings that differ between devices, and all members in one forward."""

CONFIG: dict[str, Any] = {
    "max_num_classes": 10,
    "num_buckets": 100,  # the regression head is part of the class; it is not trained here
    "embed_dim": 32,
    "dist_embed_num_blocks": 2,
    "dist_embed_num_heads": 4,
    "dist_embed_num_inducing_points": 16,
    # One column a cell, not three: after seven minutes from random weights the loss was 0.65 against 0.71, cards 0.88
    # against 0.87. So few inducing points describe how a label depends on one column, not on three at once.
    "feature_group_size": 1,
    "feat_agg_num_blocks": 2,
    "feat_agg_num_heads": 4,
    "feat_agg_num_cls_tokens": 4,
    "nlayers": 5,
    "icl_num_heads": 4,
    "decoder_head_dim": 32,
    "decoder_num_heads": 4,
    "fourier_encoding_num_frequencies": 16,
    "cell_ecdf_num_frequencies": 12,
    "softmax_scaling_mlp_hidden_dim": 32,
}

_FREQUENCIES, _VALUES = "x_embed.fourier.frequencies", "x_embed.fourier.in_linear.weight"
_METADATA = "x_embed.metadata_linear.weight"

INFERENCE_CONFIG = InferenceConfig(
    # One view, so all members are of one width and share one forward: values as they come (a cell's rank is embedded
    # beside its value), codes of categories in another order for each member. Measured on the cards with an
    # earlier checkpoint: 0.9675, with a second view of quantiles 0.9655, codes in one order 0.9651, one-hot
    # 0.9647; 32 members as 8. No SVD and no fingerprint: both would let the rounding of a batched matrix product reach
    # a row's answer (see docs/architecture.md).
    PREPROCESS_TRANSFORMS=[PreprocessorConfig("none", categorical_name="ordinal_very_common_categories_shuffled")],
    FINGERPRINT_FEATURE=False,
    SOFTMAX_TEMPERATURE=1.0,
    N_ESTIMATORS=8,
    MAX_NUMBER_OF_CLASSES=10,
    MAX_NUMBER_OF_FEATURES=100,
    MAX_NUMBER_OF_SAMPLES=2_000,
    MAX_CPU_SAMPLES=5_000,
)


def build_network(config: dict[str, Any] | None = None) -> torch.nn.Module:
    """A freshly initialised network; seed torch first."""
    architecture = ARCHITECTURES[ARCHITECTURE_NAME]
    parsed, unused = architecture.parse_config(CONFIG if config is None else config)
    if unused:
        raise ValueError(f"{ARCHITECTURE_NAME} does not know these settings: {sorted(unused)}")
    return architecture.get_architecture(parsed)


def save_checkpoint(state: dict[str, torch.Tensor], path: Path, config: dict[str, Any] | None = None) -> None:
    """Write what `TabPFNClassifier(model_path=...)` loads; `path` must contain "v3.5" (tabpfn reads it there)."""
    parsed, _ = ARCHITECTURES[ARCHITECTURE_NAME].parse_config(CONFIG if config is None else config)
    save_as_safetensors(
        {
            "state_dict": state,
            "config": asdict(parsed),
            "architecture_name": ARCHITECTURE_NAME,
            "inference_config": asdict(INFERENCE_CONFIG),
        },
        path,
    )


def load_weights(path: Path, like: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a saved checkpoint, for a network whose cells may be embedded a little differently.

    It may see fewer columns in a cell than the saved one did: the first columns' share of the cell embedding is kept,
    and made larger by the root of what was summed before. It may see a cell's rank in more waves: the new ones weigh
    nothing yet. Raises ValueError where any other shape differs.
    """
    saved, wanted = load_file(path), like.state_dict()
    prefix = "state_dict." if any(name.startswith("state_dict.") for name in saved) else ""
    weights = {name: saved[prefix + name] for name in wanted}
    before, after = (state[_FREQUENCIES].shape[0] for state in (weights, wanted))
    if after <= before:
        scale = (before / after) ** 0.5
        weights[_FREQUENCIES] = weights[_FREQUENCIES][:after]
        weights[_VALUES] = weights[_VALUES] * scale
        num_waves = (wanted[_METADATA].shape[1] - 2 * after) // (2 * after)
        weights[_METADATA] = _fit_metadata(weights[_METADATA], before, after, num_waves) * scale
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            raise ValueError(f"{path}: {name} is {tuple(weights[name].shape)}, the network's {tuple(tensor.shape)}")
    return weights


def _fit_metadata(linear: torch.Tensor, before: int, after: int, num_waves: int) -> torch.Tensor:
    """[embedding, inputs]: values and flags of each column in a cell, then sines and cosines of its rank in waves."""
    values, flags, ranks = linear.split([before, before, linear.shape[1] - 2 * before], dim=1)
    waves = ranks.unflatten(1, (before, 2, -1))[:, :after]
    waves = nn.functional.pad(waves, (0, max(0, num_waves - waves.shape[-1])))
    return torch.cat([values[:, :after], flags[:, :after], waves.flatten(1)], dim=1)
