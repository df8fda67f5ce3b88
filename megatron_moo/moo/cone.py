"""Batched ``min beta^T x + ||x||_C`` over ``x >= 0``, ``q^T x = 1``: the dual problem of CAGrad.

Written as a second-order cone program with ``C = L L^T``: minimise ``beta^T x + s`` with ``(s, v) = (s, L^T x)`` in the
cone ``s >= |v|``. Dual: maximise t with ``y = beta - t q - L z >= 0`` and ``(1, z)`` in the cone. Both have interior
points whatever the block, so a primal-dual method with Nesterov-Todd scaling converges on all of them; a fixed number
of steps is taken. Notation of Vandenberghe, "The CVXOPT linear and quadratic cone program solvers", 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .linalg import cholesky, cholesky_solve, dot, mv, plus_diagonal, ridged

_BACK = 0.99
_TINY = 1e-300


@dataclass(frozen=True)
class Program:
    """The data of one batch: ``C [B, K, K]``, ``beta [B, K]``, ``q [B, K]``, ``m [B, K]`` (1 on present rows)."""

    C: Tensor
    beta: Tensor
    q: Tensor
    m: Tensor
    ridge: float


@dataclass(frozen=True)
class State:
    """An interior point: x, y ``[B, K]``; s, t ``[B, 1]``; v = L^T x and z ``[B, K]``."""

    x: Tensor
    y: Tensor
    s: Tensor
    v: Tensor
    z: Tensor
    t: Tensor

    def moved(self, step: Tensor, by: State) -> State:
        """The point after ``step`` times the direction ``by``; a direction that is not finite is not taken."""
        finite = torch.cat([by.x, by.y, by.s, by.z, by.t, step], -1).isfinite().all(-1, keepdim=True)
        step = torch.where(finite, step, 0.0)
        pairs = zip(vars(self).values(), vars(by).values(), strict=True)
        x, y, s, v, z, t = (torch.where(finite, a + step * b, a) for a, b in pairs)
        return State(x, y, s, v, z, t)


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
    L = cholesky(ridged(program.C, program.ridge))
    point = _start(program, L, absent)
    for _ in range(steps):
        point = _step(program, L, absent, point)
    return point.x, point.y


def _start(program: Program, L: Tensor, absent: Tensor) -> State:
    q, m = program.q, program.m
    x = m / (q + absent).sqrt()
    x = x / dot(q, x).clamp(min=_TINY)
    v = mv(L.mT, x)
    s = 1.5 * (dot(v, v) + dot(x, x) / m.sum(-1, keepdim=True).clamp(min=1)).clamp(min=_TINY).sqrt()
    t = torch.where(m > 0, program.beta / (q + absent), torch.inf).amin(-1, keepdim=True).clamp(-10.0, 10.0)
    return State(x, m * (program.beta - t * q).clamp(min=1.0), s, v, torch.zeros_like(x), t)


def _step(program: Program, L: Tensor, absent: Tensor, p: State) -> State:
    q, m = program.q, program.m
    xs, ys, W = p.x + absent, p.y + absent, Scaling(p)
    kappa = 2.0 / W.bend
    a = mv(L, W.w1)
    H = ridged(program.C, program.ridge) - (kappa * a).unsqueeze(-1) * a.unsqueeze(-2)
    F = cholesky(plus_diagonal(H / W.eta2.unsqueeze(-1), ys / xs + program.ridge / W.eta2))
    dual = (program.beta - p.t * q - mv(L, p.z) - p.y) * m
    primal = 1.0 - dot(q, p.x)
    h = cholesky_solve(F, q)
    qh = dot(q, h).clamp(min=_TINY)
    column = -2.0 * W.w0 * W.w1 / W.eta2  # of W^{-2}, below its corner
    corner = W.bend / W.eta2

    def direction(pairs: Tensor, c0: Tensor, c1: Tensor) -> State:
        e0, e1 = W.inverse(c0, c1)
        e = e1 - column * e0 / corner
        right = cholesky_solve(F, (pairs / xs + mv(L, e) - dual) * m)
        dt = (primal - dot(q, right)) / qh
        dx = right + dt * h
        dv = mv(L.mT, dx)
        ds = (e0 - dot(column, dv)) / corner
        dz = e - (dv - kappa * W.w1 * dot(W.w1, dv)) / W.eta2
        return State(dx, (pairs - p.y * dx) / xs * m, ds, dv, dz, dt)

    def reach(d: State) -> Tensor:
        of_pairs = torch.maximum(-d.x / xs, -d.y / ys).amax(-1, keepdim=True)
        of_s = _inverse_reach(p.s, p.v, d.s, d.v, W.det_s)
        of_z = _inverse_reach(torch.ones_like(p.s), p.z, torch.zeros_like(p.s), d.z, W.det_z)
        return 1.0 / torch.maximum(of_pairs, torch.maximum(of_s, of_z)).clamp(min=_BACK)

    count = m.sum(-1, keepdim=True) + 1.0
    xy = p.x * p.y
    mu = (xy.sum(-1, keepdim=True) + p.s + dot(p.v, p.z)) / count
    l0, l1 = W.apply(torch.ones_like(p.s), p.z)
    d = direction(-xy, -l0, -l1)
    after = p.moved(reach(d).clamp(max=1.0), d)
    left = (dot(after.x, after.y) + after.s + dot(after.v, after.z)) / count
    sigma = (left / mu.clamp(min=_TINY)).clamp(0.0, 1.0) ** 3
    a0, a1 = W.inverse(d.s, d.v)
    b0, b1 = W.apply(torch.zeros_like(p.s), d.z)
    r0 = sigma * mu - (l0.square() + dot(l1, l1)) - (a0 * b0 + dot(a1, b1))
    r1 = -2.0 * l0 * l1 - (a0 * b1 + b0 * a1)
    c0 = (l0 * r0 - dot(l1, r1)) / (l0.square() - dot(l1, l1)).clamp(min=_TINY)
    d = direction((sigma * mu - xy - d.x * d.y) * m, c0, (r1 - c0 * l1) / l0)
    return p.moved((_BACK * reach(d)).clamp(max=1.0), d)


def _inverse_reach(s: Tensor, v: Tensor, ds: Tensor, dv: Tensor, det: Tensor) -> Tensor:
    """1 / (the longest step that stays in the cone), 0 or less where there is no end to it."""
    a = ds.square() - dot(dv, dv)
    b = s * ds - dot(v, dv)
    return (-b + (b.square() - a * det).clamp(min=0.0).sqrt()) / det
