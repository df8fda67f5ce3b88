"""Pivoting on a CPU against the fixed number of steps that a GPU takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_moo.moo import make_method, pivoting

from . import cases

METHODS = ["mgda", "cagrad", "upgrad", "dualproj"]


def solve(method: str, J: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions ``[B, n]`` and the weights ``[B, K]``."""
    weights = make_method(method)(J @ J.mT)
    return (weights.unsqueeze(1) @ J).squeeze(1), weights


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_both_ways_lead_to_the_same_direction(
    method: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in (1, 2, 3, 8):
        some = list(cases.jacobians(kind, k, 5))
        width = max(J.shape[1] for J in some)
        J = torch.tensor(np.stack([np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in some]))
        found, _ = solve(method, J)
        with monkeypatch.context() as patch:
            patch.setattr(pivoting, "may_branch", lambda values: False)
            searched, _ = solve(method, J)
        size = torch.linalg.matrix_norm(J).clamp(min=1e-300)
        assert ((found - searched).norm(dim=1) / size).max().item() <= 1e-6, k


@pytest.mark.parametrize("method", METHODS)
def test_ordinary_blocks_need_no_search(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    whole = pivoting.with_pivoting

    def counted(C: torch.Tensor, *given: object) -> torch.Tensor:
        search = given[-1]
        assert callable(search)

        def seen(blocks: torch.Tensor) -> torch.Tensor:
            left.append(len(blocks))
            return search(blocks)

        return whole(C, *given[:-1], seen)  # type: ignore[arg-type]

    for name in ("nnls", "cagrad"):
        monkeypatch.setattr(f"megatron_moo.moo.{name}.with_pivoting", counted)
    for k in (2, 4, 8, 16):
        J = torch.randn(200, k, 3 * k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        solve(method, J)
        blocks = 200 * (k if method == "upgrad" else 1)
        assert sum(left) <= 0.02 * blocks, (k, left)
        left.clear()


@pytest.mark.parametrize("k", [4, 24])
@pytest.mark.parametrize("method", METHODS)
def test_a_block_does_not_depend_on_the_blocks_beside_it(method: str, k: int) -> None:
    """Settled by pivoting or searched: a resume with other blocks solves other batches.

    Bitwise for four objectives, within rounding for many: torch's batched products of larger matrices (seen from five
    rows on) add in another order when the batch has another size.
    """
    J = torch.randn(12, k, 2 * k + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    J[3, 1] = J[3, 0]
    J[7] *= 1e-6 ** torch.rand(k, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, together = solve(method, J)
    for index in range(12) if k == 4 else (0, 3, 7):
        _, alone = solve(method, J[index : index + 1])
        allowed = 0.0 if k == 4 else 1e-12 * float(together[index].abs().max())
        assert float((alone[0] - together[index]).abs().max()) <= allowed, index
