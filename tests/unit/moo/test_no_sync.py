"""No solver waits for the device or branches on data."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_moo.moo import METHODS, make_method
from megatron_moo.moo import linalg as linalg_module

from .drawn import gramians, inputs

NAMES = [*METHODS, "normalized:mgda", "normalized:cagrad", "ema:upgrad"]
# Ops that copy a value to the host, or whose output shape depends on values.
WAITING = (
    "_local_scalar_dense",
    "item",
    "nonzero",
    "is_nonzero",
    "equal",
    "masked_select",
    "unique",
    "allclose",
)
# Factorisations that read their status back on a GPU.
CHECKED = (
    "_linalg_check_errors",
    "_linalg_eigh",
    "linalg_cholesky",
    "_linalg_svd",
    "linalg_inv",
    "_linalg_solve_ex.check",
)


class NoSynchronisation(TorchDispatchMode):
    """Raises at any operation that would make a GPU wait; keeps the names of all others.

    Python's own ways out of a tensor do not all pass the dispatcher for CPU tensors, so they are replaced as well.
    """

    PYTHON = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "cpu")

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.patches = [patch.object(torch.Tensor, name, self.refuse(name)) for name in self.PYTHON]

    @staticmethod
    def refuse(name: str) -> Any:
        def refused(*args: Any, **kwargs: Any) -> None:
            raise AssertionError(f"{name} waits for the device")

        return refused

    def __enter__(self) -> NoSynchronisation:
        for each in self.patches:
            each.start()
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        for each in self.patches:
            each.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in WAITING or name in CHECKED:
            raise AssertionError(f"{name} waits for the device")
        if name.startswith("index") and len(args) > 1 and _has_mask(args[1]):
            raise AssertionError(f"{name} by a mask waits for the device")
        self.seen.add(name)
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    """Whether indices hold a boolean tensor: how many values it selects is known on the device only."""
    return isinstance(indices, list | tuple) and any(
        isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices
    )


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace unrolls the loops: three steps show what thirty would."""
    monkeypatch.setattr("megatron_moo.moo.nnls.STEPS", 3)
    monkeypatch.setattr("megatron_moo.moo.cagrad._STEPS", 2)
    monkeypatch.setattr("megatron_moo.moo.fairgrad._STEPS", 4)


@pytest.fixture
def device_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way of a GPU: no look at values, eigenvalues by Jacobi rotations instead of LAPACK."""
    monkeypatch.setattr("megatron_moo.moo.pivoting.may_branch", lambda values: False)
    monkeypatch.setattr("megatron_moo.moo.spectrum.eigh", linalg_module.jacobi_eigh)
    monkeypatch.setattr("megatron_moo.moo.aligned_mtl.eigh", linalg_module.jacobi_eigh)


@pytest.mark.usefixtures("device_path")
@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_no_synchronisation(name: str, k: int) -> None:
    G, method = gramians(k)[:12], make_method(name)
    given = inputs(name.split(":")[-1], k)
    with NoSynchronisation() as mode:  # the second call also reads state
        first = method(G, step=1, **given)
        method(G, step=2, **given)
    assert first.isfinite().all() and len(mode.seen) > 3


def test_the_mode_sees_a_wait() -> None:
    with NoSynchronisation(), pytest.raises(AssertionError, match="waits"):
        torch.ones(2).sum().item()
    with NoSynchronisation(), pytest.raises(AssertionError, match="waits"):
        bool(torch.ones(1) > 0)
    with NoSynchronisation(), pytest.raises(AssertionError, match="waits"):
        torch.ones(1).cpu()
    with NoSynchronisation(), pytest.raises(AssertionError, match="waits"):
        torch.ones(2)[torch.tensor([True, False])]


@pytest.mark.usefixtures("device_path", "few_steps")
@pytest.mark.parametrize("name", NAMES)
def test_one_trace_serves_any_values(name: str) -> None:
    """torch.fx records the operations for one batch; replayed on another they must give what the method
    gives there: nothing that was recorded can have depended on the values."""
    k = 3
    given = inputs(name.split(":")[-1], k)

    def solve(G: torch.Tensor) -> torch.Tensor:
        return make_method(name)(G, step=4, **given)

    G, other = gramians(k)[:6], gramians(k)[6:12].clone()
    other[3] = 0.0
    other[4, 1] = other[4, :, 1] = float("nan")
    graph = make_fx(solve)(G)
    assert torch.equal(graph(other), solve(other))
    assert torch.equal(graph(G), solve(G))


@pytest.mark.usefixtures("device_path", "few_steps")
@pytest.mark.parametrize("name", ["mgda", "cagrad", "upgrad", "pcgrad", "fairgrad", "config", "mean"])
def test_export(name: str) -> None:
    """torch.export takes the solvers whole (those whose operations it knows)."""

    class Solver(torch.nn.Module):
        def forward(self, G: torch.Tensor) -> torch.Tensor:
            return make_method(name)(G)

    G = gramians(2)[:6]
    exported = torch.export.export(Solver(), (G,), strict=False)
    assert torch.allclose(
        exported.module()(gramians(2)[6:12]), make_method(name)(gramians(2)[6:12]), rtol=1e-9
    )
