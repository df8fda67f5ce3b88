"""A layout to be tested, as data, and the weights and batches that every layout must agree on.

Weights come from the global name of a parameter and batches from (objective, occurrence, micro-batch), so that a rank
at any layout builds its part of the same run, and one process can build all of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

VOCAB = 64
# No flag of Megatron's: takes one away that every run of ours must have.
NO_FP32_ACCUMULATION = "--no-fp32-accumulation"
STILL = ("--lr", "1e-12", "--min-lr", "0")  # parameters that stay, so that one reference serves every step


@dataclass(frozen=True)
class Case:
    """One row of the test matrix.

    Losses of the objectives in ``poison`` are multiplied by ``poison_with`` from step ``poison_from`` on, before
    ``poison_until``.
    ``weights`` says where the initial values come from: parameter ``names`` or a tiny Llama of ``transformers``.
    ``turn`` moves every objective to another lane, ``ragged`` masks a different number of tokens everywhere.
    ``together`` puts equal objectives side by side. ``data_of`` gives every step the data of that one.
    ``dp`` counts data-parallel ranks; the world is tp x pp x cp x dp. Flags beyond the layout go to ``flags``.
    The update of the last of ``steps`` is compared; with more than one, ``STILL`` among the flags keeps the parameters.
    """

    name: str
    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    objectives: int = 2
    slots: int = 1
    micro_batches: int = 1
    method: str = "mgda"
    options: dict[str, Any] = field(default_factory=dict)
    block: str = "layer"
    rows: str = "fp32"
    layers: int = 2
    hidden: int = 32
    seq: int = 16
    ragged: bool = True
    steps: int = 1
    turn: int = 0
    exclude: str | None = None
    observe: bool = False
    every: int = 1
    recompute: int = 0
    metric: str = "euclidean"
    wire: str = "fp32"
    auto_every: int = 50
    strength: tuple[float, float, int] = (1.0, 1.0, 1)
    exchange: str = "flat"
    ranks_per_node: int | None = None
    together: bool = False
    data_of: int | None = None
    poison: tuple[int, ...] = ()
    poison_with: float = float("nan")
    poison_from: int = 0
    poison_until: int = 1_000_000
    flags: tuple[str, ...] = ()
    seed: int = 7
    tolerance: float = 1e-5
    weights: str = "names"

    @property
    def world(self) -> int:
        return self.dp * self.tp * self.pp * self.cp

    @property
    def lanes(self) -> int:
        inner = self.tp * self.cp
        expert = self.ep * int(self.value("--expert-tensor-parallel-size", self.tp))
        return self.dp * inner // max(inner, expert) // self.instances

    @property
    def instances(self) -> int:
        """Distributed-optimizer instances; their ranks of the same shard are peers of one lane."""
        return int(self.value("--num-distributed-optimizer-instances", 1))

    def value(self, flag: str, default: Any) -> Any:
        """Value of one of ``flags``."""
        return self.flags[self.flags.index(flag) + 1] if flag in self.flags else default

    @property
    def peers(self) -> int:
        return self.dp // self.lanes

    def assignment(self, step: int) -> list[list[int]]:
        """``[slots][lanes]`` objectives: every position in turn, shifted each step; or equal ones side by side."""
        places = range(self.slots * self.lanes)
        flat = [(place + step + self.turn) % self.objectives for place in places]
        flat = sorted(flat) if self.together else flat
        return [flat[slot * self.lanes : (slot + 1) * self.lanes] for slot in range(self.slots)]

    def argv(self, alone: bool = False) -> list[str]:
        """Megatron's flags; ``alone`` drops the parallelism (the single-process reference)."""
        from megatron_moo.training.platform import CPU_FLAGS
        from megatron_moo.training.recipe import REQUIRED, to_argv

        sizes = {"tensor-model": 1, "pipeline-model": 1, "context": 1, "expert-model": 1}
        if not alone:
            sizes = {
                "tensor-model": self.tp,
                "pipeline-model": self.pp,
                "context": self.cp,
                "expert-model": self.ep,
            }
        values: dict[str, Any] = {
            **CPU_FLAGS,
            **REQUIRED,
            "vocab-size": VOCAB,
            "make-vocab-size-divisible-by": VOCAB // 2,
            "num-layers": self.layers,
            "hidden-size": self.hidden,
            "ffn-hidden-size": 48,
            "num-attention-heads": 4,
            "seq-length": self.seq,
            "max-position-embeddings": self.seq,
            "micro-batch-size": 2,
            "global-batch-size": 2 * self.slots * self.micro_batches * (1 if alone else self.dp),
            "train-iters": 20,
            "lr": 1e-3,
            "clip-grad": 0.0,
            "weight-decay": 0.0,
            "normalization": "RMSNorm",
            "position-embedding-type": "rope",
            "disable-bias-linear": True,
            "swiglu": True,
            "attention-dropout": 0.0,
            "hidden-dropout": 0.0,
            "eval-iters": 0,
            "eval-interval": 1000,
            "rerun-mode": "disabled",
            **{f"{kind}-parallel-size": size for kind, size in sizes.items()},
        }
        if self.instances > 1:
            values["ddp-reduce-scatter-with-fp32-accumulation"] = False
        if NO_FP32_ACCUMULATION in self.flags:
            values["ddp-reduce-scatter-with-fp32-accumulation"] = False
        extra = [flag for flag in self.flags if not (alone and flag in _PARALLEL_FLAGS)]
        if alone:
            extra = _without_values(extra, _PARALLEL_VALUES)
        per_token = [] if "--mean-per-micro-batch" in extra else ["--calculate-per-token-loss"]
        extra = [flag for flag in extra if flag not in ("--mean-per-micro-batch", NO_FP32_ACCUMULATION)]
        return [*to_argv(values), *per_token, *extra]


_PARALLEL_FLAGS = ("--sequence-parallel", "--overlap-grad-reduce", "--overlap-param-gather")
_PARALLEL_VALUES = ("--num-layers-per-virtual-pipeline-stage", "--ddp-bucket-size", "--ddp-num-buckets",
                    "--num-distributed-optimizer-instances", "--expert-tensor-parallel-size",
                    "--recompute-granularity", "--recompute-method", "--recompute-num-layers")  # fmt: skip


def _without_values(flags: list[str], names: tuple[str, ...]) -> list[str]:
    kept, skip = [], False
    for flag in flags:
        if skip:
            skip = False
        elif flag in names:
            skip = True
        else:
            kept.append(flag)
    return kept


def full_weight(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The unsharded initial value of a parameter, from its global name alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    values = torch.randn(shape, generator=generator)
    return 1.0 + 0.1 * values if "norm" in name else 0.15 * values


def batch(
    case: Case, step: int, slot: int, lane: int, peer: int, micro_batch: int
) -> dict[str, torch.Tensor]:
    """Micro-batch of a place in the step, the same whoever computes it: ``[2, seq]`` each."""
    assignment = case.assignment(step)
    objective = assignment[slot][lane]
    earlier = [other for row in assignment for other in row][: slot * case.lanes + lane]
    # Data belongs to (objective, occurrence), not to the rank that computes it.
    data = step if case.data_of is None else case.data_of
    place = ((data * case.objectives + objective) * 8 + earlier.count(objective)) * case.peers + peer
    generator = torch.Generator().manual_seed(case.seed * 100_003 + place * 101 + micro_batch)
    # Objectives use different, overlapping parts of the vocabulary, so that their gradients differ.
    low = objective * (VOCAB // 2) // max(1, case.objectives)
    tokens = torch.randint(low, low + VOCAB // 2, (2, case.seq + 1), generator=generator)
    mask = torch.ones(2, case.seq)
    if case.ragged:
        mask[:, int(torch.randint(case.seq // 2, case.seq, (1,), generator=generator)) :] = 0
    return {
        "tokens": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "loss_mask": mask,
        "position_ids": torch.arange(case.seq).repeat(2, 1),
        "language": objective,  # type: ignore[dict-item]
        "objective": objective,  # type: ignore[dict-item]
    }
