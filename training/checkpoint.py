"""The network of the demo checkpoint and its file: tabpfn's v3.5 architecture, small, saved as safetensors."""

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
"""Chosen over v2, whose random embeddings differ between devices and whose members need a forward pass each."""

CONFIG: dict[str, Any] = {
    "max_num_classes": 10,
    "num_buckets": 100,  # of the regression head, which is part of the class and is not trained here
    "embed_dim": 32,
    "dist_embed_num_blocks": 2,
    "dist_embed_num_heads": 4,
    "dist_embed_num_inducing_points": 16,
    # One column for each cell, not three: after seven minutes from random weights the loss was 0.65 against 0.71, and
    # the ROC AUC on cards 0.88 against 0.87. 16 inducing points can describe how a label depends on one column, but
    # not on three at once.
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
    # One view, so that all members have one width and share one forward pass: values unchanged (the network embeds a
    # cell's rank beside its value), and codes of categories in another order for each member. ROC AUC on the cards
    # with an earlier checkpoint: 0.9675; with a second view of quantiles 0.9655; with codes in one order 0.9651; with
    # one-hot codes 0.9647. 32 members give the same as 8. There is no SVD and no fingerprint, because with either the
    # rounding of a batched matrix product would reach a row's answer (docs/architecture.md).
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
    """A network with random weights from torch's generator; seed it first.

    Args:
        config: `CONFIG` if not given.

    Raises:
        ValueError: the architecture does not know a setting.
    """
    architecture = ARCHITECTURES[ARCHITECTURE_NAME]
    parsed, unused = architecture.parse_config(CONFIG if config is None else config)
    if unused:
        raise ValueError(f"{ARCHITECTURE_NAME} does not know these settings: {sorted(unused)}")
    return architecture.get_architecture(parsed)


def save_checkpoint(state: dict[str, torch.Tensor], path: Path, config: dict[str, Any] | None = None) -> None:
    """Write a file that `TabPFNClassifier(model_path=...)` loads.

    Args:
        path: its name must contain "v3.5", from which tabpfn learns the version.
        config: `CONFIG` if not given.
    """
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
    """Return the weights of a saved checkpoint for a network whose cell embedding may differ a little.

    The network may have fewer columns in a cell than the saved one: the weights of the first columns are kept and
    scaled by the root of the ratio of columns. It may embed a cell's rank in more waves: new waves have zero weights.

    Raises:
        ValueError: any other shape differs; the message names the tensor.
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
    """Weights [embedding, inputs]. Inputs are values and flags of each column of a cell, then waves of its rank."""
    values, flags, ranks = linear.split([before, before, linear.shape[1] - 2 * before], dim=1)
    waves = ranks.unflatten(1, (before, 2, -1))[:, :after]
    waves = nn.functional.pad(waves, (0, max(0, num_waves - waves.shape[-1])))
    return torch.cat([values[:, :after], flags[:, :after], waves.flatten(1)], dim=1)
