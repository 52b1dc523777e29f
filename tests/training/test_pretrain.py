"""The training loop saves files that tabpfn loads, and continues an interrupted run exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tabpfn import TabPFNClassifier

from training import pretrain
from training.checkpoint import build_network, load_weights, save_checkpoint
from training.pretrain import (
    BINARY,
    FINAL,
    FULL,
    SMALL,
    Run,
    batch_loss,
    draw_batch,
    make_optimizers,
    rate_factor,
    stage_of,
    train,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "CELLS_PER_WORKER", 2_000)
    monkeypatch.setattr(pretrain, "MAX_TABLES", 6)
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 2)


def test_steps_are_drawn_from_seed_number_and_worker() -> None:
    first, again, other = (draw_batch(1, 5, worker, SMALL) for worker in (0, 0, 1))
    assert torch.equal(first[0].nan_to_num(), again[0].nan_to_num())
    assert first[0].shape == other[0].shape
    assert not torch.equal(first[0].nan_to_num(), other[0].nan_to_num())


def test_every_parameter_has_one_optimizer() -> None:
    network = build_network()
    trained = [
        id(p) for optimizer in make_optimizers(network) for group in optimizer.param_groups for p in group["params"]
    ]
    assert sorted(trained) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_the_rate_warms_up_holds_and_decays() -> None:
    factors = [rate_factor(step, 6_000) for step in range(6_000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[3_000] == 1.0
    assert factors[pretrain.PLATEAU_STEPS - 1] == 1.0
    assert factors[-1] == pytest.approx(1 / (6_000 - pretrain.PLATEAU_STEPS))
    assert np.diff(factors[:100]).min() > 0


def test_rows_of_a_class_that_is_not_in_the_context_are_left_out() -> None:
    torch.manual_seed(0)
    network = build_network()
    features = torch.randn(20, 1, 3)
    labels = torch.tensor([0, 1] * 8 + [2, 0, 1, 2]).reshape(20, 1)
    alone = labels.clone()
    alone[16], alone[19] = 3, 5  # other classes that do not occur in the context either
    assert batch_loss(network, features, labels, 16) == batch_loss(network, features, alone, 16)


def test_an_interrupted_run_continues_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "PLATEAU_STEPS", 4)  # so that no step depends on the end of the schedule
    whole, cut = tmp_path / "whole-v3.5.safetensors", tmp_path / "cut-v3.5.safetensors"

    def run(steps: int, out: Path, resume: Path | None) -> Run:
        return Run(steps, seed=3, out=out, resume=resume, num_workers=1, threads=1, port=0)

    train(0, run(4, whole, None))
    state = torch.load(whole.with_suffix(".resume.pt"), weights_only=True)
    assert state["step"] == 4
    train(0, run(2, cut, None))
    train(0, run(4, cut, cut.with_suffix(".resume.pt")))
    resumed = torch.load(cut.with_suffix(".resume.pt"), weights_only=True)
    for name, tensor in state["network"].items():
        torch.testing.assert_close(resumed["network"][name], tensor, rtol=0, atol=0)


def test_tabpfn_loads_a_saved_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "short-v3.5.safetensors"
    train(0, Run(2, seed=3, out=out, resume=None, num_workers=1, threads=1, port=0))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4))
    model = TabPFNClassifier(model_path=str(out), device="cpu", n_estimators=2)
    probabilities = model.fit(features, features[:, 0] > 0).predict_proba(features[:5])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_tables_grow_with_the_schedule() -> None:
    assert stage_of(0) is SMALL
    assert stage_of(pretrain.SMALL_STEPS) is FULL
    assert stage_of(pretrain.FULL_STEPS) is BINARY
    assert stage_of(pretrain.PLATEAU_STEPS - 1) is BINARY
    assert stage_of(pretrain.PLATEAU_STEPS) is FINAL


def test_a_run_that_starts_from_a_checkpoint_joins_the_schedule(tmp_path: Path) -> None:
    earlier = tmp_path / "earlier-v3.5.safetensors"
    torch.manual_seed(5)
    save_checkpoint(build_network().state_dict(), earlier)
    first = pretrain.FULL_STEPS
    run = Run(first + 1, 3, tmp_path / "v3.5.safetensors", None, 1, 1, 0, start_from=earlier)
    train(0, run)
    assert torch.load(run.out.with_suffix(".resume.pt"), weights_only=True)["step"] == first + 1
    assert rate_factor(first, first + 1_000, first) == pytest.approx(0.01)
    before, after = load_weights(earlier, build_network()), load_weights(run.out, build_network())
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 1e-3, "one step at a hundredth of the rate"
