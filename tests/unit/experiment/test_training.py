"""Every language's gradient from one backward pass, blocks, AdamW and what is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from megatron_moo.experiment.adam import Adam
from megatron_moo.experiment.blocks import Blocks, bucket_names, combined, param_gramians
from megatron_moo.experiment.cell import _whole
from megatron_moo.experiment.gradients import GroupGradients
from megatron_moo.experiment.measure import Measured
from megatron_moo.experiment.setting import Setting

VOCAB, WIDTH = 11, 8


class ColumnParallelLinear(torch.nn.Module):
    """Megatron's interface: a weight and a pair as output."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(n_out, n_in) / n_in**0.5)

    def forward(self, x: torch.Tensor, weight: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        return functional.linear(x, self.weight if weight is None else weight), None


class RowParallelLinear(ColumnParallelLinear):
    """The same, under the other name."""


class Norm(torch.nn.Module):
    """Our RMSNorm's attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(1 + 0.3 * torch.randn(WIDTH))
        self.eps, self.rms, self.zero_centered = 1e-5, True, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (WIDTH,), self.weight, self.eps)


class Embedding(torch.nn.Module):
    """``[b, s]`` to ``[s, b, h]``."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = torch.nn.Embedding(VOCAB, WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.word_embeddings(tokens).transpose(0, 1).contiguous()


class Output(torch.nn.Module):
    """Without a weight of its own: it is the embedding's."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, None]:
        return functional.linear(x, weight), None


Output.__name__ = "ColumnParallelLinear"


class Model(torch.nn.Module):
    """Embedding, a norm, two linear layers with a mix over positions, the tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = Embedding(), Norm()
        self.up, self.down = ColumnParallelLinear(WIDTH, 12), RowParallelLinear(12, WIDTH)
        self.output_layer = Output()

    def forward(self, tokens: Any, position_ids: Any, mask: Any, labels: Any = None) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.down(torch.tanh(self.up(self.norm(x))[0]))[0].cumsum(0)
        logits, _ = self.output_layer(x, self.embedding.word_embeddings.weight)
        return functional.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none")


def _batch(groups: int, each: int, seq: int = 5) -> dict[str, torch.Tensor]:
    shape = (groups * each, seq)
    mask = (torch.rand(shape) < 0.8).float()
    mask[:, 0] = 1.0
    return {
        "tokens": torch.randint(VOCAB, shape), "labels": torch.randint(VOCAB, shape), "loss_mask": mask,
        "position_ids": torch.arange(seq).repeat(shape[0], 1),
    }  # fmt: skip


def test_rows_are_k_backward_passes() -> None:
    torch.manual_seed(0)
    model, batch, groups, each = Model().double(), _batch(3, 2), 3, 2
    expected = []
    for k in range(groups):
        part = {key: value[k * each : (k + 1) * each] for key, value in batch.items()}
        losses = model(part["tokens"], part["position_ids"], None, labels=part["labels"])
        loss = (losses * part["loss_mask"]).sum() / part["loss_mask"].sum()
        expected.append((loss.item(), torch.autograd.grad(loss, list(model.parameters()))))
    gradients = GroupGradients(model)
    rows, losses = gradients.rows(batch, groups)
    assert gradients.names == [name for name, _ in model.named_parameters()]
    for k, (loss, grads) in enumerate(expected):
        assert losses[k].item() == pytest.approx(loss, rel=1e-6)
        for piece, grad in zip(rows, grads, strict=True):
            torch.testing.assert_close(piece[k], grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("empty", [False, True])
def test_the_measured_step_is_the_step(empty: bool) -> None:
    """Every tenth step takes its rows from halves of the batch: joined, they are the rows of the whole."""
    torch.manual_seed(4)
    model, batch, groups = Model(), _batch(3, 4), 3
    if empty:  # the second half of the middle group is masked out, as a rare language's may be
        batch["loss_mask"][6:8] = 0.0
    gradients = GroupGradients(model)
    expected, losses = gradients.rows(batch, groups)
    halves, parts = gradients.rows(batch, 2 * groups)
    assert all(torch.isfinite(piece).all() for piece in halves)
    rows, joined = _whole(halves, parts, batch["loss_mask"])
    torch.testing.assert_close(joined, losses, rtol=5e-7, atol=0)
    for piece, other in zip(rows, expected, strict=True):
        assert piece.shape == other.shape
        torch.testing.assert_close(piece, other, rtol=0, atol=5e-7 * float(other.abs().max()))


def test_a_parameter_of_another_kind_is_refused() -> None:
    model = Model()
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"extra\.weight, extra\.bias"):
        GroupGradients(model)


def test_adam_is_torchs_with_clipping() -> None:
    torch.manual_seed(1)
    setting = replace(Setting(), clip=0.7)
    ours = [torch.randn(4, 3), torch.randn(5)]
    theirs = [torch.nn.Parameter(p.clone()) for p in ours]
    adam = Adam(ours, setting)
    optimizer = torch.optim.AdamW(
        [
            {"params": [theirs[0]], "weight_decay": setting.weight_decay},
            {"params": [theirs[1]], "weight_decay": 0.0},
        ]
    )
    for step in range(4):
        grads = [torch.randn(4, 3), torch.randn(5)]
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs, setting.clip)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.step()
        before = [p.clone() for p in ours]
        changes = adam.step(grads, 0.01 * (step + 1))
        for p, old, change, other in zip(ours, before, changes, theirs, strict=True):
            torch.testing.assert_close(p, other.data, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(p - old, change, rtol=1e-4, atol=1e-6)


def test_blocks_of_layers_and_buckets() -> None:
    names = ["embedding.word_embeddings.weight", "decoder.layers.0.mlp.linear_fc1.weight",
             "decoder.layers.1.mlp.linear_fc1.weight", "decoder.final_layernorm.weight"]  # fmt: skip
    sizes = [10, 20, 20, 4]
    assert Blocks(names, sizes, "layer").names == [
        "decoder.layers.0",
        "decoder.layers.1",
        "embedding",
        "head",
    ]
    assert Blocks(names, sizes, "model").names == ["model"]
    # From the last parameter on: 4 + 20 reach 20, then 20, then what is left.
    assert bucket_names(names, sizes, 20) == ["bucket2", "bucket1", "bucket0", "bucket0"]
    rows = [torch.randn(3, size) for size in sizes]
    blocks = Blocks(names, sizes, "bucket")
    joined = torch.cat([rows[2], rows[3]], 1).double()
    found = blocks.gramians(param_gramians(rows))[blocks.names.index("bucket0")]
    torch.testing.assert_close(found, joined @ joined.T, rtol=1e-6, atol=1e-6)
    weights = torch.randn(4, 3, dtype=torch.float64)
    for piece, w, d in zip(rows, weights, combined(rows, weights), strict=True):
        torch.testing.assert_close(d, w.float() @ piece)


def test_what_is_measured() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.2], [-1.0, 0.0]], dtype=torch.float64)  # two groups
    measured = Measured(True)
    measured.halves((rows @ rows.T)[None])
    conflict = measured.summary()["conflict"]
    assert conflict["conflict"] == 1.0 and conflict["conflict_same"] == 0.0
    assert conflict["cosine"] < -0.9 and conflict["cosine_same"] > 0.9
    pieces = [torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
    measured.applied(pieces, [torch.tensor([-0.5, 0.25])], torch.tensor([[1.0, -2.0]]))
    descent = measured.summary()["descent"]
    assert descent["each"] == [0.5, -0.25] and descent["worst"] == -0.25
    assert descent["rising"] == 0.5 and descent["rising_d"] == 0.5


def test_the_schedule_begins_at_zero_and_ends_at_its_least() -> None:
    setting = replace(Setting(), steps=100, warmup=0.1, min_lr=0.1)
    assert setting.lr(1.0, 0) == 0.0 and setting.lr(1.0, 5) == 0.5 and setting.lr(1.0, 10) == 1.0
    assert setting.lr(1.0, 55) == pytest.approx(0.55) and setting.lr(1.0, 100) == pytest.approx(0.1)
