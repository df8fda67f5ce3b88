"""One cell: a row trained with one learning rate and seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_moo.buckets.adaptive import AdaptiveBlocks
from megatron_moo.experiment.adam import Adam
from megatron_moo.experiment.blocks import Blocks, combined, param_gramians
from megatron_moo.experiment.corpus import Batch, Text
from megatron_moo.experiment.engine import Engine
from megatron_moo.experiment.gradients import GroupGradients
from megatron_moo.experiment.measure import Measured
from megatron_moo.experiment.rows import AUTO_EVERY, Row
from megatron_moo.experiment.setting import SEEN, UNSEEN


def train_cell(
    engine: Engine,
    text: Text,
    row: Row,
    lr: float,
    seed: int,
    weights: tuple[float, ...] | None = None,
    each_step: Callable[[int, torch.Tensor], None] | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Train and evaluate.

    Args:
        weights: of ``fixed``.
        each_step: told the step and the losses per group before the update.
        steps: stop early, on the schedule of the whole run.

    Returns:
        ``tune`` and ``valid`` (nats per byte and language on the two halves of the held-out windows), ``train``
        (last step's losses), ``seconds`` and what :class:`~megatron_moo.experiment.measure.Measured` saw.
    """
    started = time.perf_counter()
    run = _Run(engine, text, row, seed, weights)
    batches = _batches(text, row, seed)
    losses = torch.zeros(run.groups)
    for step in range(engine.setting.steps if steps is None else steps):
        losses = run.step(next(batches), step, lr)
        if each_step is not None:
            each_step(step, losses)
    found = {
        name: {tag: evaluate(run.model, text.valid(tag, tuning)) for tag in (*SEEN, *UNSEEN)}
        for name, tuning in (("tune", True), ("valid", False))
    }
    seconds = time.perf_counter() - started
    return {**found, "train": losses.tolist(), **run.measured.summary(), "seconds": round(seconds, 2)}


class _Run:
    def __init__(
        self, engine: Engine, text: Text, row: Row, seed: int, weights: tuple[float, ...] | None
    ) -> None:
        from megatron_moo.moo import METHODS, make_method

        self.row, self.setting, self.seed = row, engine.setting, seed
        self.model = engine.model(seed)
        self.gradients = GroupGradients(self.model)
        names, params = self.gradients.names, self.gradients.params
        sizes = [param.numel() for param in params]
        auto = row.block == "auto"
        self.blocks = Blocks(names, sizes, "module" if auto else row.block)
        self.layers = Blocks(names, sizes, "layer")
        self.adam = Adam(params, engine.setting)
        self.groups = 1 if row.batches == "mixed" else len(SEEN)
        device = torch.device("cpu")
        self.auto = AdaptiveBlocks(self.blocks.names, self.groups, AUTO_EVERY, device) if auto else None
        options = dict(row.options)
        if "seed" in METHODS[row.method].options:
            options["seed"] = seed
        if weights is not None:
            options["weights"] = list(weights)
        self.method = make_method(row.method, **options)
        self.cached: torch.Tensor | None = None
        self.measured = Measured(row.batches == "lanes")

    @torch.no_grad()
    def step(self, batch: Batch, step: int, peak: float) -> torch.Tensor:
        """One update; returns the losses before it, ``[groups]``."""
        setting, groups = self.setting, self.groups
        every = setting.measure_every
        measuring = groups > 1 and every > 0 and step % every == 0 and setting.micro_batch % 2 == 0
        with torch.enable_grad():
            rows, losses = self.gradients.rows(batch, 2 * groups if measuring else groups)
        if measuring:
            self.measured.halves(self.layers.gramians(param_gramians(rows)))
            rows, losses = _whole(rows, losses, batch["loss_mask"])
        lr = setting.lr(peak, step)
        if groups == 1:
            self.adam.step([piece[0] for piece in rows], lr)
            return losses
        if self.cached is None or step % self.row.every == 0:
            scales = self.adam.metric() if self.row.metric == "adam" else None
            gramians = self.blocks.gramians(param_gramians(rows, scales))
            tokens = batch["loss_mask"].view(groups, -1).sum(1).double()
            self.cached = self._solve(gramians, tokens, losses.double(), step)
        weights = self.cached[self.blocks.index]
        changes = self.adam.step(combined(rows, weights), lr)
        if lr > 0:
            self.measured.applied(rows, changes, weights)
        return losses

    def _solve(
        self, gramians: torch.Tensor, tokens: torch.Tensor, losses: torch.Tensor, step: int
    ) -> torch.Tensor:
        if self.auto is None:
            return self.method(gramians, tokens=tokens, losses=losses, step=step, block=self.blocks.names)
        together, names = self.auto.together(gramians), self.auto.names
        weights = self.method(together, tokens=tokens, losses=losses, step=step, block=names)
        found = self.auto.apart(weights)
        self.auto.follow(step, gramians)
        return found


def _whole(
    rows: list[torch.Tensor], losses: torch.Tensor, mask: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Rows and losses of two halves each, weighed by their tokens, to those of the whole."""
    tokens = mask.view(len(losses), -1).sum(1).view(-1, 2)
    share = tokens / tokens.sum(1, keepdim=True).clamp(min=1.0)
    whole = [
        torch.einsum("gh,ghn->gn", share, piece.view(len(share), 2, -1)).view(-1, *piece.shape[1:])
        for piece in rows
    ]
    return whole, (losses.view(-1, 2) * share).sum(1)


def _batches(text: Text, row: Row, seed: int) -> Iterator[Batch]:
    if row.batches == "mixed":
        yield from text.mixed(seed, row.sampling)
    generator = torch.Generator().manual_seed(seed)
    for batch in text.lanes(seed):
        if row.batches == "placebo":
            dealt = torch.randperm(batch["tokens"].shape[0], generator=generator)
            batch = {key: value[dealt] for key, value in batch.items()}
        yield batch


@torch.no_grad()
def evaluate(model: Any, batch: Batch) -> float:
    """Mean loss over the tokens that count, nats per token (here: per byte)."""
    model.eval()
    losses = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    model.train()
    mask = batch["loss_mask"]
    return float((losses.float() * mask).sum().double() / mask.sum().double())
