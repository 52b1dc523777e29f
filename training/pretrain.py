"""Trains the demo checkpoint from a seed: `python -m training.pretrain --out PATH`.

At each step every worker draws a batch of tables of one size, gives the network the labelled context rows, and scores
the query rows by cross entropy. Gradients are averaged over the workers. The tables grow in stages:

- until `SMALL_STEPS` they are small and simple, which is cheap and enough to learn what a label is;
- until `FULL_STEPS` they have every size;
- until `PLATEAU_STEPS` they come from every mechanism, mostly with two classes;
- then, while the learning rate decays, they have the sizes of served tables.

Muon trains the matrices inside the blocks, AdamW everything else. The learning rate warms up, is constant until
`PLATEAU_STEPS`, and decays linearly to the end.

`--start-from` takes the weights of an earlier checkpoint and joins the schedule after `FULL_STEPS`. The checkpoint in
the package was made in this way from its predecessor.

The tables of a step depend only on the seed, the number of the step and the worker. An interrupted run continues with
`--resume`, and `--steps` may still be raised until the plateau ends.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import distributed, multiprocessing, nn
from torch.nn import functional

from benchmarks.command_line import command_parser, existing_file
from serve.core.files import atomic_write
from training.checkpoint import build_network, load_weights, save_checkpoint
from training.prior import BASIC_WEIGHTS, FINAL_WEIGHTS, FULL_WEIGHTS, Table, sample_table

CELLS_PER_WORKER = 16_000
MIN_TABLES, MAX_TABLES = 4, 24
WARMUP_STEPS, SMALL_STEPS, FULL_STEPS, PLATEAU_STEPS = 100, 1_500, 3_500, 5_200
MUON_RATE, ADAMW_RATE = 3e-3, 1.5e-3
SAVE_EVERY, LOG_EVERY = 100, 50


@dataclass(frozen=True)
class Stage:
    """The tables of some steps. Numbers of rows and features are log-uniform over the ranges."""

    rows: tuple[int, int]
    features: tuple[int, int]
    weights: Sequence[float]
    binary_share: float = 0.65


SMALL = Stage((48, 256), (1, 32), BASIC_WEIGHTS)
FULL = Stage((48, 1_200), (1, 32), FULL_WEIGHTS)
# Tables of many classes have the largest losses and so most of the gradient, but served tables have two classes.
BINARY = Stage((64, 600), (3, 32), FINAL_WEIGHTS, binary_share=0.85)
FINAL = Stage((450, 1_600), (8, 32), FINAL_WEIGHTS, binary_share=0.85)


@dataclass(frozen=True)
class Run:
    """The options of a run, the same for every worker."""

    num_steps: int
    seed: int
    out: Path
    resume: Path | None
    num_workers: int
    threads: int
    port: int
    start_from: Path | None = None

    @property
    def first_step(self) -> int:
        """The step at which the run joins the schedule."""
        return FULL_STEPS if self.start_from else 0


def stage_of(step: int) -> Stage:
    """The stage that a step belongs to."""
    if step < SMALL_STEPS:
        return SMALL
    if step < FULL_STEPS:
        return FULL
    return BINARY if step < PLATEAU_STEPS else FINAL


def draw_batch(seed: int, step: int, worker: int, stage: Stage) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Draw the tables of one worker for one step.

    Returns:
        Features float32 [rows, tables, features], labels int64 [rows, tables], and the number of context rows.
    """
    shape = np.random.default_rng([seed, step])  # the same for all workers, so that no worker waits for another
    num_rows = int(np.exp(shape.uniform(np.log(stage.rows[0]), np.log(stage.rows[1]))))
    num_features = int(np.exp(shape.uniform(np.log(stage.features[0]), np.log(stage.features[1] + 1))))
    num_tables = int(np.clip(CELLS_PER_WORKER // (num_rows * (num_features + 4)), MIN_TABLES, MAX_TABLES))
    num_context = int(num_rows * shape.uniform(0.4, 0.9))
    rng = np.random.default_rng([seed, step, worker])
    tables = [_usable_table(rng, num_rows, num_features, num_context, stage) for _ in range(num_tables)]
    features = torch.from_numpy(np.stack([table.features for table in tables], axis=1))
    labels = torch.from_numpy(np.stack([table.labels for table in tables], axis=1))
    return features, labels, num_context


def _usable_table(rng: np.random.Generator, num_rows: int, num_features: int, num_context: int, stage: Stage) -> Table:
    while True:  # a context of one class teaches nothing; most tables pass at the first attempt
        table = sample_table(rng, num_rows, num_features, stage.weights, stage.binary_share)
        if len(np.unique(table.labels[:num_context])) > 1:
            return table


def batch_loss(network: nn.Module, features: torch.Tensor, labels: torch.Tensor, num_context: int) -> torch.Tensor:
    """Mean cross entropy of the query rows, without rows whose class does not occur in the context."""
    context_labels, targets = labels[:num_context], labels[num_context:].clone()
    logits = network(features, context_labels.float(), "multiclass")  # [query rows, tables, classes]
    for table in range(labels.shape[1]):
        shown = torch.unique(context_labels[:, table])
        targets[:, table][~torch.isin(targets[:, table], shown)] = -100
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def make_optimizers(network: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of attention and feed-forward blocks, AdamW for embeddings, norms, heads and biases."""
    matrices, others = [], []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = any(part in name for part in ("icl_blocks.", "layers.", "column_aggregator.blocks."))
        is_matrix = parameter.ndim == 2 and inside and "softmax_scaling" not in name and "inducing" not in name
        (matrices if is_matrix else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, num_steps: int, first_step: int = 0) -> float:
    """The factor of the learning rate at a step: warm-up from `first_step`, plateau, linear decay to zero."""
    return min(1.0, (step - first_step + 1) / WARMUP_STEPS, (num_steps - step) / max(1, num_steps - PLATEAU_STEPS))


def average_gradients(network: nn.Module, num_workers: int) -> None:
    """Average all gradients over the workers, in place and in one exchange. The regression head has no gradients."""
    if num_workers == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = nn.utils.parameters_to_vector(gradients)
    distributed.all_reduce(flat)
    nn.utils.vector_to_parameters(flat / num_workers, gradients)


def train(worker: int, run: Run) -> None:
    """Run the schedule as one of the workers. Worker 0 logs and saves."""
    torch.set_num_threads(run.threads)
    if run.num_workers > 1:
        distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{run.port}", rank=worker, world_size=run.num_workers
        )
    torch.manual_seed(run.seed)
    network = build_network().train()
    if run.start_from:
        network.load_state_dict(load_weights(run.start_from, network))
    optimizers = make_optimizers(network)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first = _restore(run.resume, network, optimizers) if run.resume else run.first_step
    started, losses = time.perf_counter(), []
    for step in range(first, run.num_steps):
        features, labels, num_context = draw_batch(run.seed, step, worker, stage_of(step))
        for optimizer, base in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate_factor(step, run.num_steps, run.first_step)
            optimizer.zero_grad(set_to_none=True)
        loss = batch_loss(network, features, labels, num_context)
        loss.backward()
        average_gradients(network, run.num_workers)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
        if worker == 0 and (step + 1) % LOG_EVERY == 0:
            _log(step + 1, losses[-LOG_EVERY:], time.perf_counter() - started)
        if worker == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == run.num_steps):
            _save(run.out, network, optimizers, step + 1)


def _log(step: int, losses: list[float], seconds: float) -> None:
    line = {"step": step, "loss": round(float(np.mean(losses)), 4), "seconds": round(seconds, 1)}
    print(json.dumps(line), flush=True)


def _save(out: Path, network: nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    save_checkpoint(network.state_dict(), out)
    states = [optimizer.state_dict() for optimizer in optimizers]
    with atomic_write(out.with_suffix(".resume.pt")) as part:
        torch.save({"network": network.state_dict(), "optimizers": states, "step": step}, part)


def _restore(path: Path, network: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def main() -> None:
    """The command."""
    parser = command_parser("training.pretrain", __doc__)
    parser.add_argument("--out", type=Path, default=Path("training/out/demo-v3.5.safetensors"), help="the checkpoint")
    parser.add_argument("--steps", type=int, default=8_000, help="the last step of the schedule")
    parser.add_argument("--seed", type=int, default=1, help="of weights and tables")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes; each draws its own tables, so the result depends on it"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in each process")
    parser.add_argument(
        "--resume", type=existing_file, metavar="FILE", help="the .resume.pt file of an interrupted run"
    )
    parser.add_argument(
        "--start-from", type=existing_file, metavar="FILE", help="a checkpoint whose weights are the first weights"
    )
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = Run(
        arguments.steps, arguments.seed, arguments.out, arguments.resume, arguments.workers, arguments.threads, port,
        arguments.start_from,
    )  # fmt: skip
    started = time.perf_counter()
    multiprocessing.spawn(train, args=(run,), nprocs=run.num_workers)
    print(f"wrote {run.out} after {(time.perf_counter() - started) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
