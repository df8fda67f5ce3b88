"""Beside TorchJD, with its known biases: where it is exact we agree, where it is not we are nearer to the
oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchjd import aggregation as tj

from megatron_moo.moo import make_method

from . import cases, oracles


def rows(k: int, seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng([seed, k])
    return [torch.tensor(rng.standard_normal((k, k + 4))) for _ in range(10)]


def projecting(theirs: torch.nn.Module | str) -> torch.nn.Module:
    """TorchJD's UPGrad and DualProj by name: they need quadprog, whose licence (GPL) keeps it out of our requirements.

    Our own are held against an independent oracle everywhere (test_oracles.py).
    """
    if isinstance(theirs, str):
        pytest.importorskip("quadprog", reason="TorchJD projects with quadprog (GPL): install it to compare")
        pytest.importorskip("qpsolvers", reason="TorchJD projects with qpsolvers: install it to compare")
        return getattr(tj, theirs)()
    return theirs


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        ("imtl_g", tj.IMTLG(), 1e-7),
        ("aligned_mtl", tj.AlignedMTL(), 1e-7),
        ("config", tj.ConFIG(), 1e-7),
        ("cagrad", tj.CAGrad(c=0.5), 1e-4),
        ("fairgrad", tj.FairGrad(alpha=1.0), 1e-4),
        ("dualproj", "DualProj", 1e-1),
        ("upgrad", "UPGrad", 1e-1),
        ("mgda", tj.MGDA(), 4e-2),
        ("mean", tj.Mean(), 1e-12),
        ("sum", tj.Sum(), 1e-12),
    ],
)
def test_torchjd(ours: str, theirs: torch.nn.Module | str, tolerance: float, k: int) -> None:
    theirs = projecting(theirs)
    for J in rows(k):
        d = make_method(ours)(J @ J.T) @ J
        assert (d - theirs(J)).norm() <= tolerance * J.norm()


@pytest.mark.parametrize("scale", ["median", "rmse"])
def test_torchjd_aligned_mtl_scales(scale: str) -> None:
    for J in rows(4):
        assert torch.allclose(
            make_method("aligned_mtl", scale=scale)(J @ J.T) @ J, tj.AlignedMTL(scale_mode=scale)(J)
        )


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize(
    ("name", "theirs", "oracle"),
    [
        ("upgrad", "UPGrad", oracles.upgrad),
        ("dualproj", "DualProj", oracles.dualproj),
        ("mgda", tj.MGDA(), oracles.mgda_by_nnls),
    ],
)
def test_the_difference_is_theirs(name: str, theirs: torch.nn.Module | str, oracle: object, k: int) -> None:
    """Over conflicting rows theirs is off by more than 1e-5, ours by less than 1e-7."""
    theirs = projecting(theirs)
    worst = [0.0, 0.0]
    for J in cases.jacobians("stationary", k, 5, seed=3):
        J = J / np.linalg.norm(J) + 0.02
        reference, t = oracle(J), torch.tensor(J)  # type: ignore[operator]
        ours = (make_method(name)(t @ t.T) @ t).numpy()
        for i, d in enumerate((ours, theirs(t).numpy())):
            worst[i] = max(worst[i], float(np.linalg.norm(d - reference) / np.linalg.norm(J)))
    assert worst[0] <= 1e-7 and worst[1] >= 1e-5


def test_small_gradients_do_not_turn_us_into_the_mean_or_nothing() -> None:
    """Below ||J||_F = 0.01 TorchJD's UPGrad becomes Mean and its CAGrad 0; ours only scale."""
    J = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
    small = 1e-9 * J
    assert torch.allclose(projecting("UPGrad")(small), small.mean(0)) and not tj.CAGrad(c=0.5)(small).any()
    for name in ("upgrad", "cagrad"):
        d = make_method(name)(J @ J.T) @ J
        assert torch.allclose(make_method(name)(small @ small.T) @ small, 1e-9 * d, rtol=1e-9, atol=0)


def test_torchjd_stateful_peers() -> None:
    """MoDo, SDMGrad and CR-MOGM over a few calls (theirs divides SDMGrad's matrix by 1e-8 more)."""
    modo, sdm = tj.MoDoWeighting(gamma=0.1, rho=0.1), tj.SDMGradWeighting()
    crmogm = tj.CRMOGMWeighting(tj.MeanWeighting(), alpha=0.9)
    ours = [make_method("modo"), make_method("sdmgrad"), make_method("crmogm:mean")]
    for J, other in zip(rows(4), rows(4, seed=1), strict=True):
        G, cross = J @ J.T, J @ other.T
        assert torch.allclose(ours[0](G, cross=cross), modo(cross))
        assert torch.allclose(ours[1](G, cross=cross), sdm(cross), atol=1e-6)
        assert torch.allclose(ours[2](G), crmogm(G))


def test_torchjd_gradvac_at_two_objectives() -> None:
    """With two rows there is one order only, so the states can be compared call by call (theirs adds
    1e-8)."""
    ours, theirs = make_method("gradvac", beta=0.5), tj.GradVacWeighting(beta=0.5)
    for J in rows(2):
        assert torch.allclose(ours(J @ J.T), theirs(J @ J.T), rtol=1e-5)


def test_torchjd_pcgrad_at_two_objectives() -> None:
    for J in rows(2):
        assert torch.allclose(make_method("pcgrad")(J @ J.T), tj.PCGradWeighting()(J @ J.T))
