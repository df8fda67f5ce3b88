"""What methods remember, and how they draw."""

from __future__ import annotations

import pytest
import torch

from megatron_moo.moo import METHODS, make_method
from megatron_moo.moo.draws import mix, normal, uniform

from .drawn import gramians

STATEFUL = [name for name, spec in METHODS.items() if spec.state]
NAMES = ["embed", "layer.0", "layer.1", "head"]


def calls(method: object, start: int, count: int, names: list[str], pick: list[int]) -> list[torch.Tensor]:
    """Weights of a few steps, blocks in the order of ``pick``, losses that change with the step."""
    k, out = 4, []
    for step in range(start, start + count):
        G = gramians(k)[4 * step : 4 * step + 4][pick]
        losses = torch.linspace(2, 3, k).double() / (1 + 0.1 * step * torch.arange(1, k + 1))
        out.append(method(G, step=step, block=[names[i] for i in pick], losses=losses, tokens=[1.0] * k))  # type: ignore[operator]
    return out


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_method_goes_on_bitwise(name: str) -> None:
    method, resumed = make_method(name), make_method(name)
    calls(method, 0, 3, NAMES, [0, 1, 2, 3])
    state = method.state_dict()
    assert set(state) == set(make_method(name).state_dict()), "the same keys before the first step and after"
    assert bool(state) == METHODS[name].state
    resumed.load_state_dict(state)
    on, again = (calls(m, 3, 4, NAMES, [0, 1, 2, 3]) for m in (method, resumed))
    assert all(torch.equal(a, b) for a, b in zip(on, again, strict=True))
    assert state.keys() == resumed.state_dict().keys()


@pytest.mark.parametrize("name", METHODS)
def test_state_and_draws_follow_the_name_of_a_block(name: str) -> None:
    """Another order of blocks, as after a change of layout, and blocks that sit out a step."""
    method, other = make_method(name), make_method(name)
    calls(method, 0, 2, NAMES, [0, 1, 2, 3])
    calls(other, 0, 2, NAMES, [3, 1, 0, 2])
    (a,), (b,) = calls(method, 2, 1, NAMES, [0, 1, 2, 3]), calls(other, 2, 1, NAMES, [2, 0, 3, 1])
    assert torch.allclose(a[[2, 0, 3, 1]], b, rtol=1e-6, atol=1e-9)
    (c,), (d,) = calls(method, 3, 1, NAMES, [1, 2]), calls(other, 3, 1, NAMES, [1, 2])
    assert torch.allclose(c, d, rtol=1e-6, atol=1e-9)
    (e,), (f,) = calls(method, 4, 1, NAMES, [0, 1, 2, 3]), calls(other, 4, 1, NAMES, [0, 1, 2, 3])
    assert torch.allclose(e, f, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", STATEFUL)
def test_state_matters(name: str) -> None:
    used, fresh = make_method(name), make_method(name)
    calls(used, 0, 3, NAMES, [0, 1, 2, 3])
    (a,), (b,) = calls(used, 3, 1, NAMES, [0, 1, 2, 3]), calls(fresh, 3, 1, NAMES, [0, 1, 2, 3])
    assert not torch.allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_of_another_method_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="state"):
        make_method(name).load_state_dict({"phi": torch.zeros(1)})
    with pytest.raises(ValueError, match="state"):
        make_method("mgda").load_state_dict({"phi": torch.zeros(1)})


def test_another_number_of_objectives_is_refused() -> None:
    method = make_method("gradvac")
    method(gramians(3)[:2])
    with pytest.raises(ValueError, match="number of objectives changed"):
        method(gramians(4)[:2])


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.random])
def test_draws_are_a_function_of_seed_step_and_block(name: str) -> None:
    G = gramians(8)[2::6][:20]
    names = [f"block.{i}" for i in range(len(G))]

    def weights(seed: int, step: int, prefix: str = "") -> torch.Tensor:
        return make_method(name, seed=seed)(G, step=step, block=[prefix + n for n in names])

    first = weights(1, 7)
    assert torch.equal(first, weights(1, 7))
    for other in (weights(2, 7), weights(1, 8), weights(1, 7, "x")):
        assert not torch.allclose(first, other)
    same = G[:1].expand(4, 8, 8)
    assert len(make_method(name)(same, block=list("abcd")).unique(dim=0)) > 1, "blocks draw for themselves"


def test_random_weights_are_softmax_of_normal_numbers() -> None:
    w = make_method("random")(torch.eye(3).double().expand(20000, 3, 3))
    assert torch.allclose(w.sum(-1), torch.ones(()).double())
    z = w.log() - w.log().mean(-1, keepdim=True)
    assert z.mean(0).tolist() == pytest.approx([0, 0, 0], abs=0.02)
    assert z.square().mean(0).tolist() == pytest.approx(
        [2 / 3] * 3, rel=0.03
    )  # (1 - 1/K) of the variance is left


def test_the_generator() -> None:
    """splitmix64's published first outputs for seed 0 (state after one and two increments), and its
    moments."""
    golden = 0x9E3779B97F4A7C15
    states = torch.tensor([golden - 2**64, (2 * golden) % 2**64], dtype=torch.int64)
    outputs = [value % 2**64 for value in mix(states).tolist()]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    u, z = uniform(torch.arange(2000), 64), normal(torch.arange(2000), 64)
    assert ((u > 0) & (u < 1)).all() and u.mean().item() == pytest.approx(0.5, abs=0.005)
    assert z.std().item() == pytest.approx(1, abs=0.01) and z.pow(4).mean().item() == pytest.approx(
        3, abs=0.1
    )


def test_random_orders_are_uniform_permutations_and_given_ones_are_used() -> None:
    method = make_method("pcgrad")
    orders: list[tuple[int, ...]] = []
    original = method.keys.order  # type: ignore[attr-defined]
    method.keys.order = lambda problem: orders.append(original(problem)) or orders[-1]  # type: ignore[attr-defined,func-returns-value]
    method(gramians(4)[:1].expand(6000, 4, 4))
    (order,) = orders
    for i in range(4):
        rows = order[:, i]
        assert (rows.sort(-1).values == torch.tensor([j for j in range(4) if j != i])).all()
        _, counts = rows.unique(dim=0, return_counts=True)
        assert len(counts) == 6 and (counts.double() / 1000 - 1).abs().max() < 0.12


def test_pcgrad_by_hand_with_its_order() -> None:
    """The published loop on the rows themselves."""
    J = torch.randn(5, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 0.2
    order = [[j for j in (3, 1, 4, 0, 2) if j != i] for i in range(5)]
    rows = []
    for i in range(5):
        g = J[i].clone()
        for j in order[i]:
            if g @ J[j] < 0:
                g = g - (g @ J[j]) / (J[j] @ J[j]) * J[j]
        rows.append(g)
    d = make_method("pcgrad")(J @ J.T, order=torch.tensor(order)) @ J
    assert torch.allclose(d, torch.stack(rows).sum(0))


def test_gradvac_turns_rows_to_their_target() -> None:
    """By hand on the rows: after the turn the cosine is the target, and the target follows the cosines."""
    J = torch.randn(3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = [[1, 2], [2, 0], [0, 1]]
    target = torch.zeros(3, 3).double()
    method = make_method("gradvac", beta=0.3)
    for _ in range(3):
        rows = []
        for i in range(3):
            g = J[i].clone()
            for j in order[i]:
                phi, t = torch.cosine_similarity(g, J[j], dim=0), target[i, j].clone()
                if phi < t:
                    turn = t * (1 - phi**2).sqrt() - phi * (1 - t**2).sqrt()
                    g = g + g.norm() * turn / (J[j].norm() * (1 - t**2).sqrt()) * J[j]
                    assert torch.allclose(torch.cosine_similarity(g, J[j], dim=0), t)
                target[i, j] += 0.3 * (phi - t)
            rows.append(g)
        d = method(J @ J.T, order=torch.tensor(order)) @ J
        assert torch.allclose(d, torch.stack(rows).sum(0))
        assert torch.allclose(method.state_dict()["target"][0], target)
        J = torch.randn(3, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.3


def test_smoothing() -> None:
    """EMA is the weighted mean of the past; CR-MOGM is momentum from the first weights."""
    G = gramians(3)[:4]
    inner = torch.stack([make_method("fairgrad", alpha=2)(g[None])[0] for g in G])
    ema, crmogm = (
        make_method("ema", of="fairgrad", alpha=2, decay=0.6),
        make_method("crmogm:fairgrad", alpha=2, decay=0.6),
    )
    smooth = inner[0]
    for t in range(4):
        ages = 0.6 ** torch.arange(t, -1, -1).double()
        assert torch.allclose(ema(G[t : t + 1])[0], (ages[:, None] * inner[: t + 1]).sum(0) / ages.sum())
        smooth = inner[0] if t == 0 else 0.6 * smooth + 0.4 * inner[t]
        assert torch.allclose(crmogm(G[t : t + 1])[0], smooth)


def test_absent_rows_keep_their_average() -> None:
    G = gramians(3)[:1].clone()
    for name in ("ema:mgda", "crmogm:mgda"):
        method = make_method(name)
        first = method(G)
        gone = G.clone()
        gone[:, 1] = gone[:, :, 1] = 0
        assert method(gone)[0, 1] == 0
        kept = method.state_dict()["average"][0, 1]
        if name == "ema:mgda":
            kept = kept / method.state_dict()["mass"][0, 1]
        assert torch.allclose(kept, first[0, 1])
