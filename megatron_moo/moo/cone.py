"""Batched ``min beta^T x + ||x||_C`` over ``x >= 0``, ``q^T x = 1``: the dual problem of CAGrad.

Written as a second-order cone program with ``C = L L^T``: minimise ``beta^T x + s`` with ``(s, v) = (s, L^T
x)`` in the cone ``s >= |v|``. Dual: maximise t with ``y = beta - t q - L z >= 0`` and ``(1, z)`` in the
cone. Both have interior points whatever the block, so a primal-dual method with Nesterov-Todd scaling
converges on all of them; a fixed number of steps is taken. Notation of Vandenberghe, "The CVXOPT linear and
quadratic cone program solvers", 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .linalg import cholesky, cholesky_solve, dot, mv, ridged

_BACK = 0.99
_TINY = 1e-300


@dataclass(frozen=True)
class Program:
    """The data of one batch: ``C [B, K, K]``, ``beta [B, K]``, ``q [B, K]``, ``m [B, K]`` (1 on present
    rows)."""

    C: Tensor
    beta: Tensor
    q: Tensor
    m: Tensor
    ridge: float


class State:
    """An interior point, or a direction: ``x, y, v = L^T x, z`` ``[B, K]`` and ``s, t`` ``[B, 1]``, in one
    tensor."""

    def __init__(self, packed: Tensor) -> None:
        k = (packed.shape[-1] - 2) // 4
        self.packed = packed
        self.x, self.y, self.v, self.z, self.s, self.t = packed.split([k, k, k, k, 1, 1], -1)

    @classmethod
    def of(cls, x: Tensor, y: Tensor, v: Tensor, z: Tensor, s: Tensor, t: Tensor) -> State:
        """Pack the parts."""
        return cls(torch.cat([x, y, v, z, s, t], -1))

    def moved(self, step: Tensor, by: State) -> State:
        """The point after ``step`` times the direction ``by``; a direction that is not finite is not
        taken."""
        after = self.packed + step * by.packed
        return State(torch.where(after.sum(-1, keepdim=True).isfinite(), after, self.packed))


class Scaling:
    """Nesterov and Todd's W of the cone: symmetric, ``W (1, z) = W^{-1} (s, v)``."""

    def __init__(self, p: State) -> None:
        nv, nz = dot(p.v, p.v).sqrt(), dot(p.z, p.z).sqrt()
        # As products: the squares' difference would be lost to rounding near the boundary.
        self.det_s = ((p.s - nv) * (p.s + nv)).clamp(min=_TINY)
        self.det_z = ((1.0 - nz) * (1.0 + nz)).clamp(min=_TINY)
        rs, rz = self.det_s.sqrt(), self.det_z.sqrt()
        s0, sv, z0, zv = p.s / rs, p.v / rs, 1.0 / rz, p.z / rz
        gamma = (0.5 * (1.0 + s0 * z0 + dot(sv, zv))).sqrt()
        self.w0, self.w1 = (s0 + z0) / (2.0 * gamma), (sv - zv) / (2.0 * gamma)
        self.eta2 = rs / rz
        self.eta = self.eta2.sqrt()
        self.bend = 2.0 * self.w0.square() - 1.0

    def apply(self, a0: Tensor, a1: Tensor) -> tuple[Tensor, Tensor]:
        """``W a``."""
        p = dot(self.w1, a1)
        return self.eta * (self.w0 * a0 + p), self.eta * (a1 + self.w1 * (a0 + p / (1.0 + self.w0)))

    def inverse(self, a0: Tensor, a1: Tensor) -> tuple[Tensor, Tensor]:
        """``W^{-1} a``."""
        p = dot(self.w1, a1)
        return (self.w0 * a0 - p) / self.eta, (a1 - self.w1 * (a0 - p / (1.0 + self.w0))) / self.eta


def solve_cone(program: Program, steps: int) -> tuple[Tensor, Tensor]:
    """Primal x and slack y, both ``[B, K]``, 0 on absent rows; where ``x > y`` is the support."""
    absent = 1.0 - program.m
    C = ridged(program.C, program.ridge)
    L = cholesky(C)
    point = _start(program, L, absent)
    for _ in range(steps):
        point = _step(program, C, L, absent, point)
    return point.x, point.y


def _start(program: Program, L: Tensor, absent: Tensor) -> State:
    q, m = program.q, program.m
    x = m / (q + absent).sqrt()
    x = x / dot(q, x).clamp(min=_TINY)
    v = mv(L.mT, x)
    s = 1.5 * (dot(v, v) + dot(x, x) / m.sum(-1, keepdim=True).clamp(min=1)).clamp(min=_TINY).sqrt()
    t = torch.where(m > 0, program.beta / (q + absent), torch.inf).amin(-1, keepdim=True).clamp(-10.0, 10.0)
    return State.of(x, m * (program.beta - t * q).clamp(min=1.0), v, torch.zeros_like(x), s, t)


def _step(program: Program, C: Tensor, L: Tensor, absent: Tensor, p: State) -> State:
    """One predictor and corrector; ``C`` and its factor ``L`` carry the ridge, ``absent`` keeps quotients
    finite."""
    q, m, W = program.q, program.m, Scaling(p)
    xs, ys = p.x + absent, p.y + absent
    kappa, corner = 2.0 / W.bend, W.bend / W.eta2
    a = mv(L, W.w1)
    H = torch.addcmul(
        C / W.eta2.unsqueeze(-1), (kappa / W.eta2 * a).unsqueeze(-1), a.unsqueeze(-2), value=-1.0
    )
    H.diagonal(dim1=-2, dim2=-1).add_(ys / xs + program.ridge / W.eta2)
    F = cholesky(H)
    dual = (program.beta - p.t * q - mv(L, p.z) - p.y) * m
    primal = 1.0 - dot(q, p.x)
    h = cholesky_solve(F, q)
    qh = dot(q, h).clamp(min=_TINY)
    column = (-2.0 * W.w0 / W.eta2) * W.w1  # of W^{-2}, below its corner

    def direction(pairs: Tensor, c0: Tensor, c1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """dx / x, dv, dz, ds, dt for the right-hand sides of the pairs (over x) and of the cone."""
        e0, e1 = W.inverse(c0, c1)
        e = e1 - column * (e0 / corner)
        right = cholesky_solve(F, pairs + mv(L, e) * m - dual)
        dt = (primal - dot(q, right)) / qh
        dx = right + dt * h
        dv = mv(L.mT, dx)
        dz = e - (dv - W.w1 * (kappa * dot(W.w1, dv))) / W.eta2
        return dx / xs, dv, dz, (e0 - dot(column, dv)) / corner, dt

    def inverse_reach(of_x: Tensor, of_y: Tensor, dv: Tensor, dz: Tensor, ds: Tensor) -> Tensor:
        of_pairs = torch.maximum(-of_x, -of_y).amax(-1, keepdim=True)
        of_s = _inverse_reach(p.s, p.v, ds, dv, W.det_s)
        of_z = _inverse_reach(torch.ones_like(p.s), p.z, torch.zeros_like(p.s), dz, W.det_z)
        return torch.maximum(of_pairs, torch.maximum(of_s, of_z))

    count = m.sum(-1, keepdim=True) + 1.0
    xy = p.x * p.y
    mu = xy.sum(-1, keepdim=True) + p.s + dot(p.v, p.z)
    l0, l1 = W.apply(torch.ones_like(p.s), p.z)
    r, dv, dz, ds, _ = direction(-p.y, -l0, -l1)
    step = 1.0 / inverse_reach(r, -1.0 - r, dv, dz, ds).clamp(min=1.0)
    curl = xy * r * (1.0 + r)  # minus the products dx dy that the linear model leaves out
    left = (1.0 - step) * mu + step.square() * (dot(dv, dz) - curl.sum(-1, keepdim=True))
    target = (left / mu.clamp(min=_TINY)).clamp(0.0, 1.0) ** 3 * mu / count
    a0, a1 = W.inverse(ds, dv)
    b0, b1 = W.apply(torch.zeros_like(ds), dz)
    r0 = target - (l0.square() + dot(l1, l1)) - (a0 * b0 + dot(a1, b1))
    r1 = -2.0 * l0 * l1 - (a0 * b1 + b0 * a1)
    c0 = (l0 * r0 - dot(l1, r1)) / (l0.square() - dot(l1, l1)).clamp(min=_TINY)
    push = torch.addcmul(curl, target, m) / xs
    r, dv, dz, ds, dt = direction(push - p.y, c0, (r1 - c0 * l1) / l0)
    of_y = push / ys - 1.0 - r
    step = (_BACK / inverse_reach(r, of_y, dv, dz, ds).clamp(min=_BACK)).clamp(max=1.0)
    return p.moved(step, State.of(r * xs, of_y * ys * m, dv, dz, ds, dt))


def _inverse_reach(s: Tensor, v: Tensor, ds: Tensor, dv: Tensor, det: Tensor) -> Tensor:
    """1 / (the longest step that stays in the cone), 0 or less where there is no end to it."""
    a = ds.square() - dot(dv, dv)
    b = s * ds - dot(v, dv)
    return (-b + (b.square() - a * det).clamp(min=0.0).sqrt()) / det
