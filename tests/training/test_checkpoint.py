"""Weights of a checkpoint fit a network whose cells have fewer columns; any other difference is refused."""

from pathlib import Path

import pytest
import torch

from training.checkpoint import CONFIG, build_network, load_weights, save_checkpoint


def saved(config: dict[str, object], path: Path) -> torch.nn.Module:
    torch.manual_seed(1)
    network = build_network(config)
    save_checkpoint(network.state_dict(), path, config)
    return network


def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    path = tmp_path / "same-v3.5.safetensors"
    network = saved(CONFIG, path)
    for name, tensor in load_weights(path, build_network()).items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=0, atol=0)


def test_the_first_column_of_a_cell_is_kept_and_all_other_weights_are_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "three-v3.5.safetensors"
    few_waves = {**CONFIG, "cell_ecdf_num_frequencies": 4}
    three = saved({**few_waves, "feature_group_size": 3}, path)
    one = build_network({**few_waves, "feature_group_size": 1})
    one.load_state_dict(load_weights(path, one))
    for name, tensor in one.state_dict().items():
        if not name.startswith(("x_embed.fourier", "x_embed.metadata")):
            torch.testing.assert_close(tensor, three.state_dict()[name], rtol=0, atol=0)
    # a cell of three columns, of which two are zero and none is missing
    values, zeros = torch.randn(4, 1), torch.zeros(4, 2)
    alone = torch.cat([values, torch.zeros(4, 1), torch.rand(4, 1)], dim=-1)
    joined = torch.cat([values, zeros, torch.zeros(4, 3), alone[:, 2:], zeros], dim=-1)
    first, second = (network.x_embed.metadata_linear.weight for network in (one, three))
    ranks = torch.tensor([6, 7, 8, 9, 10, 11, 12, 13])  # of the first of three columns, after values and flags
    torch.testing.assert_close(first, second[:, torch.cat([torch.tensor([0, 3]), ranks])] * 3**0.5)
    assert one.x_embed(alone).shape == three.x_embed(joined).shape


def test_further_waves_of_a_rank_have_no_weight_at_first(tmp_path: Path) -> None:
    path = tmp_path / "few-v3.5.safetensors"
    few = saved({**CONFIG, "cell_ecdf_num_frequencies": 3}, path)
    many = build_network({**CONFIG, "cell_ecdf_num_frequencies": 5})
    many.load_state_dict(load_weights(path, many))
    cells = torch.cat([torch.randn(4, 1), torch.zeros(4, 1), torch.rand(4, 1)], dim=-1)  # value, flag, rank
    torch.testing.assert_close(many.x_embed(cells[None, :, None]), few.x_embed(cells[None, :, None]))


def test_fewer_waves_of_a_rank_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many-v3.5.safetensors"
    saved({**CONFIG, "cell_ecdf_num_frequencies": 13}, path)
    with pytest.raises(ValueError, match="metadata_linear"):
        load_weights(path, build_network())


def test_another_width_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "narrow-v3.5.safetensors"
    saved({**CONFIG, "embed_dim": 16}, path)
    with pytest.raises(ValueError, match=r"narrow-v3\.5\.safetensors: [a-z_.]+ is \(.*\), the network's \(.*\)"):
        load_weights(path, build_network())
